"""The model `detections` is `rdfa.detect`: the same video, whatever the grid, gives the same file to the last bit."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from rdfa import detect
from rdfa.deploy.manifest import feature_spec
from rdfa.inference.detectors import open_run
from rdfa.serve import models
from rdfa.serve.refusals import BadRequest
from tests.test_detect import CHANNELS, write_run

FPS = 29.97


def serve(folder, *params):
    """Models of a run with other settings of the data set: (run directory, source, Detector, Detections)."""
    run = write_run(folder, "PostProcessing.max_seg_num = 20", *params)
    source = open_run(str(run), "cpu")
    spec = feature_spec(source.config)
    return run, source, models.Detector(source, spec, 4), models.Detections(source, spec)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return serve(tmp_path_factory.mktemp("run"))


def random_features(clips, seed=0):
    return np.random.default_rng(seed).standard_normal((clips, CHANNELS), np.float32)


def one(value):
    return np.array([value], np.float64)


@pytest.mark.parametrize(
    ("params", "clips"),
    [
        ((), 20),
        ((), 75),
        (("Dataset.downsample_rate = 2",), 41),
        (("Dataset.resize = True",), 33),
        (("Dataset.class_agnostic = True", "Dataset.num_classes = 1", "PtTransformerClsHead.num_classes = 1"), 20),
    ],
)
def test_as_the_command_detects(tmp_path, params, clips):
    run, source, _, model = serve(tmp_path / "run", *params)
    features = random_features(clips)
    np.save(tmp_path / "video.npy", features)
    file = tmp_path / "found.json"
    command = [
        "--run_dir",
        run,
        "--device",
        "cpu",
        "--features",
        tmp_path / "video.npy",
        "--fps",
        FPS,
        "--output",
        file,
    ]
    detect.main(list(map(str, command)))
    wanted = json.loads(file.read_text())["results"]["video"]
    (found,) = models.run(source, [model.prepare({"features": features, "fps": one(FPS)})])
    assert len(wanted) > 5
    assert [entry["label"].encode() for entry in wanted] == found["label_names"].tolist()
    np.testing.assert_array_equal(np.array([e["segment"] for e in wanted], np.float32), found["segments"])
    np.testing.assert_array_equal(np.array([e["score"] for e in wanted], np.float32), found["scores"])
    assert {s.name: models.DTYPES[s.datatype] for s in model.outputs} == {n: a.dtype.type for n, a in found.items()}


def test_duration_clips_and_default_rate_is_used(tmp_path):
    _, source, _, model = serve(tmp_path / "run", "Dataset.default_fps = 20.0")
    features = random_features(40)
    whole, clipped, doubled = models.run(
        source,
        [
            model.prepare({"features": features}),
            model.prepare({"features": features, "duration": one(1.5)}),
            model.prepare({"features": features, "fps": one(40.0)}),
        ],
    )
    assert whole["segments"].max() > 1.5 == clipped["segments"].max()
    np.testing.assert_allclose(doubled["segments"] * 2, whole["segments"], rtol=1e-6)


def test_resized_video_needs_only_its_duration(tmp_path):
    _, source, _, model = serve(tmp_path / "run", "Dataset.resize = True")
    features = random_features(10)
    (found,) = models.run(source, [model.prepare({"features": features, "duration": one(7.0)})])
    assert 3 < found["segments"].max() <= 7
    with pytest.raises(BadRequest, match="fps or duration"):
        model.prepare({"features": features})


def test_videos_of_a_batch_are_those_of_their_own(served):
    _, source, detector, model = served
    time = model.prepare({"features": random_features(9), "fps": one(FPS)}).length
    raw = {
        "features": np.random.default_rng(1).standard_normal((2, CHANNELS, time), np.float32),
        "mask": np.arange(time) < np.array([[9], [time]]),
    }
    jobs = [detector.prepare(raw), model.prepare({"features": random_features(9), "fps": one(FPS)})]
    together = models.run(source, jobs)
    for found, job in zip(together, jobs):
        (alone,) = models.run(source, [job])
        assert found.keys() == alone.keys()
        for name, values in alone.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(found[name], values)
    with torch.inference_mode():
        direct = source.runner.forward(torch.from_numpy(raw["features"]), torch.from_numpy(raw["mask"]))
    for name, values in zip(("cls_logits", "offsets", "point_mask"), direct):
        np.testing.assert_allclose(together[0][name], values.numpy(), rtol=1e-4, atol=1e-5)


def test_video_that_overflows_harms_no_other(served):
    _, source, _, model = served
    huge = np.full((9, CHANNELS), 3e38, np.float32)
    good = model.prepare({"features": random_features(9), "fps": one(FPS)})
    bad, found = models.run(source, [model.prepare({"features": huge, "fps": one(FPS)}), good])
    assert isinstance(bad, BadRequest) and "not finite" in bad.message
    assert len(found["scores"])


def test_a_failure_over_one_video_harms_no_other(served):
    """A fault of ours, which nobody foresaw."""
    _, source, _, model = served
    jobs = [model.prepare({"features": random_features(9), "fps": one(FPS)}) for _ in range(2)]
    jobs[0] = dataclasses.replace(jobs[0], finish=lambda *outputs: 1 / 0)
    failed, found = models.run(source, jobs)
    assert isinstance(failed, ZeroDivisionError) and len(found["scores"])


def test_read_only_and_unaligned_arrays_are_taken(served, recwarn):
    model = served[-1]
    features = random_features(9)
    shifted = np.frombuffer(b"x" + features.tobytes(), np.float32, offset=1).reshape(features.shape)
    assert not shifted.flags.aligned and not shifted.flags.writeable
    jobs = [model.prepare({"features": array, "fps": one(FPS)}) for array in (features, shifted)]
    assert torch.equal(jobs[0].features_BCT, jobs[1].features_BCT)
    assert not [w for w in recwarn if "writable" in str(w.message)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": None}, "send fps"),
        ({"fps": one(0.0)}, "fps = 0.0"),
        ({"duration": one(-1.0)}, "duration = -1.0"),
        ({"fps": one(1e-300)}, "fps = 1e-300"),
        ({"duration": one(1e300)}, "duration = 1e+300"),
        ({"duration": one(np.inf)}, "infinity"),
        ({"fps": np.array([30.0, 30.0])}, "[2]"),
        ({"features": np.zeros((0, CHANNELS), np.float32)}, "at least one"),
        ({"features": np.zeros((100_000, CHANNELS), np.float32)}, "at most"),
        ({"features": np.zeros((9, CHANNELS + 1), np.float32)}, f"[-1, {CHANNELS}]"),
        ({"features": None}, "'features' is missing"),
    ],
)
def test_bad_video_is_refused(served, change, words):
    model = served[-1]
    arrays = {"features": random_features(9), "fps": one(FPS), **change}
    with pytest.raises(BadRequest) as caught:
        model.prepare({name: array for name, array in arrays.items() if array is not None})
    assert words in caught.value.message


def test_mask_of_other_bytes_is_refused(served):
    mask = np.full((1, 64), 2, np.uint8).view(np.bool_)
    with pytest.raises(BadRequest, match="0 and 1"):
        served[2].prepare({"features": np.zeros((1, CHANNELS, 64), np.float32), "mask": mask})


@pytest.mark.parametrize(
    ("shape", "mask_shape", "words"),
    [
        ((0, 64), (0, 64), "batch of 0"),
        ((5, 64), (5, 64), "send 1 to 4"),
        ((2, 64), (2, 62), "[2, 62]"),
        ((1, 0), (1, 0), "0 time steps"),
        ((1, 63), (1, 63), "63 time steps"),
    ],
)
def test_bad_batch_is_refused(served, shape, mask_shape, words):
    detector = served[2]
    features = np.zeros((shape[0], CHANNELS, shape[1]), np.float32)
    with pytest.raises(BadRequest) as caught:
        detector.prepare({"features": features, "mask": np.ones(mask_shape, np.bool_)})
    assert words in caught.value.message
