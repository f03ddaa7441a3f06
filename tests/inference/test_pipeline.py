"""From padded features to detections in seconds, with a detector whose outputs are known."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rdfa.config import load
from rdfa.data.annotations import AnnotationSet, Video
from rdfa.data.dataset import FeatureDataset
from rdfa.data.settings import DatasetSettings
from rdfa.deploy.manifest import feature_spec
from rdfa.errors import RunError
from rdfa.inference.batches import load_batches, plan_batches
from rdfa.inference.pipeline import Runner, detect_videos, run_module, run_session
from rdfa.inference.settings import PostProcessingSettings
from rdfa.modeling.detector import build_detector
from rdfa.runtime.inference_form import inference_form
from rdfa.runtime.session import Session

GIN = Path(__file__).parents[2] / "gin"
CHANNELS, MAX_SEQ_LEN, MULTIPLE = 3, 32, 8
POST = PostProcessingSettings(nms_method="none", pre_nms_thresh=0.5)


@pytest.fixture
def open_dataset(tmp_path):
    """A data set of videos with the given numbers of clips, durations and frame rate."""

    def make(lengths, fps=10.0, duration=None, **settings):
        for i, length in enumerate(lengths):
            features = np.random.RandomState(i).standard_normal((length, CHANNELS)).astype(np.float32)
            np.save(tmp_path / f"v{i}.npy", features)
        videos = [Video(f"v{i}", "", duration, fps, np.empty((0, 2)), np.empty(0, int)) for i in range(len(lengths))]
        settings = DatasetSettings(feature_dir=str(tmp_path), max_seq_len=MAX_SEQ_LEN, **settings)
        return FeatureDataset(settings, AnnotationSet({v.id: v for v in videos}, {}), "", False, CHANNELS)

    return make


def points(num_clips):
    times = torch.arange(num_clips, dtype=torch.float32)
    return torch.stack([times, times * 0, times * 0 + 10, times * 0 + 1], dim=1)


def finds_one(features_BCT, mask_BT):
    """One detection per video: class 1 at clip 4, from 2 before to 3 after it."""
    logits = torch.full((*mask_BT.shape, 2), -20.0)
    logits[:, 4, 1] = 2.0
    offsets = torch.zeros(*mask_BT.shape, 2)
    offsets[:, 4] = torch.tensor([2.0, 3.0])
    return logits, offsets, mask_BT


def run(dataset, forward=finds_one, batch_size=1, **options):
    runner = Runner(forward, points)
    return dict(detect_videos(runner, batches(dataset, batch_size, MULTIPLE), dataset.settings, POST, **options))


def batches(dataset, batch_size, multiple=32):
    return load_batches(dataset, plan_batches(dataset, batch_size, multiple), 0.0, multiple)


def test_seconds_are_those_of_the_definition(open_dataset):
    dataset = open_dataset([20], feat_stride=4, num_frames=16, downsample_rate=2)
    (found,) = run(dataset).values()
    # grid 2 .. 7, stride 8 frames, half a clip of 16 frames, 10 frames per second
    np.testing.assert_allclose(found.segments_N2, [[(2 * 8 + 8) / 10, (7 * 8 + 8) / 10]], rtol=1e-6)
    assert found.labels_N.tolist() == [1]
    assert found.scores_N.tolist() == pytest.approx([1 / (1 + np.exp(-2))])


@pytest.mark.parametrize(("duration", "end"), [(3.0, 3.0), (None, (5 * 4 + 16) / 10)])
def test_segments_end_with_the_video(open_dataset, duration, end):
    """Without a duration the video ends with its last clip: 6 clips, a stride of 4 frames, 16 frames each."""
    (found,) = run(open_dataset([6], duration=duration)).values()
    assert found.segments_N2.tolist() == [[pytest.approx((2 * 4 + 8) / 10), pytest.approx(end)]]


@pytest.mark.parametrize("duration", [8.0, None])
def test_seconds_of_a_resized_video_spread_over_its_duration(open_dataset, duration):
    """32 positions over 8 seconds: given, or what 17 clips cover at 10 frames per second."""
    (found,) = run(open_dataset([17], duration=duration, resize=True)).values()
    seconds = (duration or (16 * 4 + 16) / 10) / MAX_SEQ_LEN
    np.testing.assert_allclose(found.segments_N2, [[(2 + 0.5) * seconds, (7 + 0.5) * seconds]], rtol=1e-6)


def test_videos_are_padded_by_the_rule_and_batched_by_length(open_dataset):
    seen = []

    def forward(features_BCT, mask_BT):
        seen.append((features_BCT.shape[-1], mask_BT.sum(dim=1).tolist()))
        assert (features_BCT.transpose(1, 2)[~mask_BT] == 0).all()
        return finds_one(features_BCT, mask_BT)

    dataset = open_dataset([5, 33, 32, 40, 41, 7, 9])
    assert set(run(dataset, forward, batch_size=2)) == {f"v{i}" for i in range(7)}
    assert seen == [(48, [41]), (40, [33, 40]), (32, [5, 32]), (32, [7, 9])]


def test_features_reach_the_detector_unchanged(open_dataset):
    got = {}

    def forward(features_BCT, mask_BT):
        got[int(mask_BT.sum())] = features_BCT[0][:, mask_BT[0]]
        return finds_one(features_BCT, mask_BT)

    dataset = open_dataset([5, 11], downsample_rate=2)
    run(dataset, forward)
    for length in (5, 11):
        features = np.load(f"{dataset.settings.feature_dir}/v{(5, 11).index(length)}.npy")[::2]
        np.testing.assert_array_equal(got[len(features)], features.T)


def test_class_scores_are_fused(open_dataset):
    scores = {"v0": np.array([0.5, 0.0]), "v1": np.array([0.0, 0.25])}
    found = run(open_dataset([9, 9]), class_scores=scores)
    sigmoid = 1 / (1 + np.exp(-2))
    assert [(d.labels_N.tolist(), d.scores_N.tolist()) for d in found.values()] == [
        ([0], [pytest.approx((0.5 * sigmoid) ** 0.5)]),
        ([1], [pytest.approx((0.25 * sigmoid) ** 0.5)]),
    ]


@pytest.mark.parametrize("output", [0, 1])
def test_outputs_that_are_not_finite_are_an_error_that_names_the_video(open_dataset, output):
    def forward(features_BCT, mask_BT):
        outputs = finds_one(features_BCT, mask_BT)
        outputs[output][0, 1] = float("nan")
        return outputs

    with pytest.raises(RunError, match=r"video v0: .*not finite"):
        run(open_dataset([9]), forward)


def test_a_gpu_computes_the_next_batch_while_one_is_decoded(open_dataset):
    dataset, log, started = open_dataset([9, 10, 11]), [], [threading.Event() for _ in range(3)]

    def forward(features_BCT, mask_BT):
        assert torch.is_inference_mode_enabled()
        number = int(mask_BT.sum()) - 9
        log.append(f"forward {number}")
        started[number].set()
        return finds_one(features_BCT, mask_BT)

    runner = Runner(forward, points, on_gpu=True)
    for number, (video_id, _) in enumerate(detect_videos(runner, batches(dataset, 1), dataset.settings, POST)):
        assert video_id == f"v{number}"
        assert started[min(number + 1, 2)].wait(10)  # the next one, without being asked for
        log.append(f"decoded {number}")
    assert log == ["forward 0", "forward 1", "decoded 0", "forward 2", "decoded 1", "decoded 2"]


def test_a_file_that_a_gpu_was_to_read_ahead_loses_nothing(open_dataset, tmp_path):
    dataset, found = open_dataset([9, 10, 11]), []
    plan = plan_batches(dataset, 1, MULTIPLE)
    (tmp_path / "v1.npy").write_bytes(b"no features")
    runner = Runner(finds_one, points, on_gpu=True)
    with pytest.raises(RunError, match=r"v1\.npy"):
        for video_id, _ in detect_videos(runner, load_batches(dataset, plan, 0.0, 32), dataset.settings, POST):
            found.append(video_id)
    assert found == ["v0"]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_an_error_of_the_detector_names_its_video(open_dataset, on_gpu):
    def forward(features_BCT, mask_BT):
        if mask_BT.sum() == 10:
            raise RunError("too long")
        return finds_one(features_BCT, mask_BT)

    dataset, found = open_dataset([9, 10, 11]), []
    with pytest.raises(RunError, match="video v1: too long"):
        for video_id, _ in detect_videos(Runner(forward, points, on_gpu), batches(dataset, 1), dataset.settings, POST):
            found.append(video_id)
    assert found == ["v0"]


@pytest.fixture(scope="module")
def tiny():
    """The smallest configuration, and its detector."""
    torch.manual_seed(0)
    params = [f"EmbeddingModule.input_c = {CHANNELS}", "Dataset.annotation_file = ''", "Dataset.feature_dir = ''"]
    config = load([GIN / "tiny.gin"], params)
    return config, build_detector(config.model).eval()


def test_module_and_session_give_the_same(open_dataset, tiny):
    config, detector = tiny
    form = inference_form(detector)

    def call(features, mask):
        with torch.inference_mode():
            return [o.numpy() for o in form(torch.from_numpy(features), torch.from_numpy(mask))]

    session = Session({"features": feature_spec(config)}, "test", "cpu", call)
    dataset = open_dataset([20, 64, 70])
    post = PostProcessingSettings(pre_nms_thresh=0.0, max_seg_num=20)
    results = [
        dict(detect_videos(runner, batches(dataset, 1), dataset.settings, post))
        for runner in (run_module(detector), run_session(session, config.model))
    ]
    assert results[0].keys() == results[1].keys() == {"v0", "v1", "v2"}
    for mine, theirs in zip(results[0].values(), results[1].values()):
        assert len(mine) == 20
        np.testing.assert_array_equal(mine.segments_N2, theirs.segments_N2)
        np.testing.assert_array_equal(mine.scores_N, theirs.scores_N)
        np.testing.assert_array_equal(mine.labels_N, theirs.labels_N)


def test_the_batch_size_changes_nothing(open_dataset, tiny):
    dataset = open_dataset([20, 30, 31, 50, 64])
    post = PostProcessingSettings(pre_nms_thresh=0.0, max_seg_num=5)
    single, pairs = (
        dict(detect_videos(run_module(tiny[1]), batches(dataset, n), dataset.settings, post)) for n in (1, 2)
    )
    for video_id, found in single.items():
        np.testing.assert_allclose(found.scores_N, pairs[video_id].scores_N, rtol=1e-4)
        np.testing.assert_allclose(found.segments_N2, pairs[video_id].segments_N2, rtol=1e-4, atol=1e-4)


def test_a_video_too_long_is_an_error_that_names_it(open_dataset, tiny):
    runner = run_module(tiny[1])
    longest = tiny[1].generator.max_frames
    dataset = open_dataset([longest + 1])
    with pytest.raises(RunError, match=rf"video v0: {longest + 32} frames"):
        list(detect_videos(runner, batches(dataset, 1), dataset.settings, POST))
