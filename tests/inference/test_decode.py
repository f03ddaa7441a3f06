"""`detect` against the published post-processing (`postprocess_inference_*`), and what it does with odd input."""

import json

import numpy as np
import pytest
import torch

from ops import nms
from rdfa.errors import RunError
from rdfa.inference.decode import Detections, VideoTiming, detect
from rdfa.inference.settings import PostProcessingSettings
from tests.golden.rebuild import FOLDER, load_npz

LEVELS = range(6)
KINDS = {
    kind: json.loads((FOLDER / f"postprocess_inference_{kind}.json").read_text())
    for kind in ("random", "empty", "ties")
}
ARRAYS = {kind: load_npz(f"postprocess_inference_{kind}") for kind in KINDS}
CONFIGS = range(7)


def outputs(kind):
    """logits [2,P,C], offsets [2,P,2], mask [2,P], points [P,4]"""
    levels = {
        name: np.concatenate([ARRAYS[kind][f"{name}_{level}"] for level in LEVELS], axis=axis)
        for name, axis in (("cls_logits", 1), ("offsets", 1), ("mask", 1), ("points", 0))
    }
    return tuple(map(torch.from_numpy, levels.values()))


def timings(kind):
    meta = KINDS[kind]["meta"]
    columns = ("vid_fps", "vid_lens", "vid_ft_stride", "vid_ft_nframes")
    return [VideoTiming(*values) for values in zip(*(meta[name] for name in columns))]


def settings_of(kind, config):
    return PostProcessingSettings(**KINDS[kind]["configs"][config]["engine"])


def run(kind, config):
    return detect(*outputs(kind), timings(kind), settings_of(kind, config))


def expected_of(kind, config, video):
    return [ARRAYS[kind][f"out{config}_{video}_{name}"] for name in ("segments", "scores", "labels")]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", ["random", "empty"])
def test_equals_the_published_detections(kind, config):
    for video, found in enumerate(run(kind, config)):
        segments, scores, labels = expected_of(kind, config, video)
        assert len(found) == len(scores)
        np.testing.assert_allclose(found.segments_N2, segments, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.scores_N, scores, rtol=1e-5)
        np.testing.assert_array_equal(found.labels_N, labels)


def table(segments, scores, labels):
    return sorted(map(tuple, np.column_stack([labels, np.round(scores, 5), np.round(segments, 3)]).tolist()))


@pytest.mark.parametrize("video", [0, 1])
def test_ties_decode_to_the_published_candidates(video):
    """Saturated scores: the published order of equals is not that of their index, so they are compared as sets."""
    found = run("ties", 4)[video]  # no NMS; of the greatest score, the limit per level keeps others than published
    segments, scores, labels = expected_of("ties", 4, video)
    cut_among_equals = found.scores_N.max() - 1e-6
    ours = table(*(a[found.scores_N < cut_among_equals] for a in (found.segments_N2, found.scores_N, found.labels_N)))
    theirs = table(*(a[scores < cut_among_equals] for a in (segments, scores, labels)))
    assert len(found) == len(scores) and len(ours) > 100
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("config", [0, 2, 5])
def test_ties_suppress_like_the_published_run_where_it_preferred_the_same_equals(config):
    """From the published candidates (on the grid), equals ordered as the published detections prefer them."""
    raw = "raw5" if config == 5 else "raw0"
    segments, scores, labels = (
        torch.from_numpy(ARRAYS["ties"][f"{raw}_{n}"]) for n in ("segments", "scores", "labels")
    )
    expected, timing = expected_of("ties", config, 0), timings("ties")[0]
    in_seconds = timing.seconds(segments).numpy()
    preference = []
    for segment, label in zip(in_seconds, labels.numpy()):
        same = np.isclose(segment, expected[0], rtol=1e-5, atol=1e-5).all(axis=1) & (label == expected[2])
        preference.append(int(same.argmax()) if same.any() else len(scores))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), preference[i]))
    post = settings_of("ties", config)
    _, found, _ = nms(
        segments[order],
        scores[order],
        labels[order],
        method=post.nms_method,
        multiclass=post.multiclass_nms,
        iou_threshold=post.iou_threshold,
        min_score=post.min_score,
        max_seg_num=post.max_seg_num,
        sigma=post.nms_sigma,
    )
    np.testing.assert_allclose(found, expected[1], rtol=1e-5)


def test_seconds_are_clipped_to_the_video_and_only_at_zero_when_its_length_is_unknown():
    grid = torch.tensor([[-10.0, 3.0], [5.0, 1000.0]])
    known, unknown = VideoTiming(25.0, 20.0, 4, 16), VideoTiming(25.0, None, 4, 16)
    torch.testing.assert_close(known.seconds(grid), torch.tensor([[0.0, 0.8], [1.12, 20.0]]))
    torch.testing.assert_close(unknown.seconds(grid)[1, 1], torch.tensor(160.32))


def test_result_types():
    found = run("random", 0)[0]
    assert isinstance(found, Detections)
    assert (found.segments_N2.dtype, found.scores_N.dtype, found.labels_N.dtype) == (np.float32, np.float32, np.int64)
    assert (np.diff(found.scores_N) <= 0).all()


def test_half_precision_outputs_are_accepted():
    logits, offsets, mask, points = outputs("random")
    found = detect(logits.bfloat16(), offsets.bfloat16(), mask, points, timings("random"), PostProcessingSettings())
    assert len(found[0]) == 200


def test_a_nan_at_a_valid_point_is_an_error_and_at_padding_is_not():
    logits, offsets, mask, points = outputs("random")
    padded, valid = int((~mask[1]).nonzero()[0]), int(mask[1].nonzero()[3])
    logits[1, padded, 2] = float("nan")
    detect(logits, offsets, mask, points, timings("random"), PostProcessingSettings())
    offsets[1, valid, 1] = float("inf")
    with pytest.raises(RunError, match=rf"video 1 of the batch is not finite at point {valid} of 504"):
        detect(logits, offsets, mask, points, timings("random"), PostProcessingSettings())


def test_one_timing_per_video():
    with pytest.raises(ValueError, match="1 videos for a batch of 2"):
        detect(*outputs("random"), timings("random")[:1], PostProcessingSettings())
