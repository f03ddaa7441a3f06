"""Synthetic data sets: the same everywhere, in the real layout, and with actions where they claim to be."""

import hashlib

import numpy as np
import pytest

from rdfa.cli import run
from rdfa.data.annotations import load_annotations
from rdfa.data.dataset import FeatureDataset
from rdfa.data.settings import DatasetSettings
from rdfa.data.synthetic import main, write_dataset


def fingerprint(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = np.load(path).astype("<f4").tobytes() if path.suffix == ".npy" else path.read_bytes()
            digest.update(path.name.encode() + content)
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    write_dataset(folder)
    return folder


def features(folder, video):
    return np.load(folder / "features" / f"{video.id}.npy")


def test_the_same_bits_everywhere(default):
    assert fingerprint(default) == "6a3682aea48fea99"


def test_seed_and_sizes(tmp_path):
    sizes = {"num_train": 3, "num_test": 1, "num_classes": 2, "feature_dim": 7, "min_len": 24, "max_len": 31}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_dataset(tmp_path / name, **sizes, seed=seed)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")
    annotations = load_annotations(tmp_path / "a" / "annotations.json")
    assert [len(annotations.subset(subset)) for subset in ("validation", "test")] == [3, 1]
    for video in annotations.videos.values():
        length, channels = features(tmp_path / "a", video).shape
        assert 24 <= length <= 31 and channels == 7 and len(video.labels_N)
    assert not list(tmp_path.rglob("*tmp"))


def test_layout(default):
    annotations = load_annotations(default / "annotations.json")
    assert annotations.class_names == {label: f"action_{label}" for label in range(5)}
    settings = DatasetSettings(num_classes=5, feature_dir=str(default / "features"))
    for subset, training, number in ((settings.train_subset, True, 40), (settings.test_subset, False, 16)):
        dataset = FeatureDataset(settings, annotations, subset, training, 32)
        assert len(dataset) == number and not dataset.missing
        assert set(np.concatenate([video.labels_N for video in dataset.videos])) == set(range(5))
        for item in dataset:
            assert item["features_CT"].shape[1] <= 250
            assert (item["segments_N2"] >= 0).all() and (item["segments_N2"] <= item["features_CT"].shape[1]).all()


def test_durations_span_the_pyramid_and_some_actions_overlap(default):
    videos = load_annotations(default / "annotations.json").videos.values()
    lengths = np.concatenate([(video.segments_N2[:, 1] - video.segments_N2[:, 0]) * 30 / 4 for video in videos])
    counts, _ = np.histogram(lengths, [0, 8, 16, 32, 64, 128])
    assert (counts >= 20).all()
    overlaps = [(video.segments_N2[1:, 0] < video.segments_N2[:-1, 1]).sum() for video in videos]
    assert 0.1 < sum(overlaps) / sum(len(video.labels_N) - 1 for video in videos) < 0.3
    covered = sum(float(np.diff(video.segments_N2).sum()) for video in videos) / sum(v.duration for v in videos)
    assert 0.4 < covered < 0.9


def test_actions_are_where_the_annotations_say(default):
    """The mean of the clips of a class, less that of the background, is a pattern of one size and its own signs."""
    videos = load_annotations(default / "annotations.json").videos.values()
    inside = {label: [] for label in range(5)}
    background = []
    for video in videos:
        features_TC = features(default, video)
        free = np.ones(len(features_TC), dtype=bool)
        clips_N2 = np.rint((video.segments_N2 * 30 - 8) / 4).astype(int)
        for first, last in clips_N2:
            free[max(first - 2, 0) : last + 3] = False
        background.append(features_TC[free])
        for number, (first, last) in enumerate(clips_N2):
            others = np.delete(clips_N2, number, axis=0)
            if not ((others[:, 0] - 2 <= last) & (others[:, 1] + 2 >= first)).any():
                inside[video.labels_N[number]].append(features_TC[first + 1 : last])
    noise = np.concatenate(background)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    signatures = np.array([np.concatenate(clips).mean(axis=0) for clips in inside.values()])
    np.testing.assert_allclose(np.abs(signatures), 0.9, atol=0.2)
    resemblance = np.corrcoef(np.sign(signatures)) - np.eye(5)
    assert np.abs(resemblance).max() < 0.5


def test_command(tmp_path, capsys):
    flags = ["--num_train", "2", "--num_test", "1", "--feature_dim", "8", "--num_classes", "3"]
    assert run(main, ["--output", str(tmp_path / "x"), *flags]) == 0
    assert "2 training and 1 test videos of 3 classes" in capsys.readouterr().out
    assert len(list((tmp_path / "x" / "features").iterdir())) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_train", "0"], "--num_train 0: must be at least 1"),
        (["--num_classes", "-1"], "--num_classes -1: must be at least 1"),
        (["--min_len", "10"], "--min_len 10, --max_len 250: 24 <= min_len <= max_len is needed"),
        (["--max_len", "99"], "--min_len 100, --max_len 99: 24 <= min_len <= max_len is needed"),
    ],
)
def test_wrong_sizes(tmp_path, capsys, flags, message):
    assert run(main, ["--output", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
