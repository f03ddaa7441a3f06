"""Data sets and loaders: published items, order and crops that can be continued anywhere, and what is refused."""

import json
import random
import sys

import numpy as np
import pytest
import torch

from rdfa.data.annotations import load_annotations
from rdfa.data.dataset import EpochSampler, FeatureDataset, ItemKey, make_loader
from rdfa.data.settings import DatasetSettings, LoaderSettings
from rdfa.data.share import Share
from rdfa.errors import RunError, UsageError
from tests.data.factory import GOLDEN, real, real_data, video, write_annotations, write_features

ITEMS = json.loads((GOLDEN / "data_items.json").read_text())


@pytest.mark.parametrize("extension", [".npy", ".pt"])
@pytest.mark.parametrize("setting", [0, 1, 2])
@pytest.mark.parametrize("partition", ["train", "test"])
def test_items_as_published(tmp_path, partition, setting, extension):
    metas = []
    for item in ITEMS["items"]:
        if item["meta"] not in metas:
            metas.append(item["meta"])
    meta = metas[setting]
    expected = [item for item in ITEMS["items"] if item["partition"] == partition and item["meta"] == meta]
    (tmp_path / "a.json").write_text(json.dumps(ITEMS["annotation"]))
    for item in expected:
        features_TC = np.zeros((item["feats_shape"][1] * meta["downsample_rate"], 2), dtype=np.float32)
        features_TC[:, 0] = np.arange(len(features_TC))
        if extension == ".npy":
            np.save(tmp_path / f"{item['video_id']}.npy", features_TC)
        else:
            torch.save(torch.from_numpy(features_TC), tmp_path / f"{item['video_id']}.pt")
    settings = DatasetSettings(feature_dir=str(tmp_path), feature_ext=extension, **meta)
    subset = settings.train_subset if partition == "train" else settings.test_subset
    dataset = FeatureDataset(settings, load_annotations(tmp_path / "a.json"), subset, partition == "train", 2)
    assert len(dataset) == len(expected) > 0
    for item, published in zip(dataset, expected):
        assert item["video_id"] == published["video_id"]
        assert item["fps"] == published["fps"]
        assert item["duration"] == (None if published["duration"] == 1e8 else published["duration"])
        assert list(item["features_CT"].shape) == published["feats_shape"]
        assert item["features_CT"][0, :5].tolist() == published["feats_row0_head"]
        assert item["features_CT"].dtype == item["segments_N2"].dtype == torch.float32
        np.testing.assert_allclose(item["segments_N2"], published["segments"], rtol=0, atol=1e-5)
        assert item["labels_N"].tolist() == published["labels"] and item["labels_N"].dtype == torch.int64


NAMES = [f"v{i:02d}" for i in range(11)]


@pytest.fixture
def training_set(tmp_path):
    """Eleven videos of odd lengths around 64 clips, one without actions."""
    lengths = {name: 41 + 7 * i for i, name in enumerate(NAMES)}
    videos = {name: video(annotations=[([1.0, 3.0], "A", 0), ([2.0, 2.5], "B", 1)]) for name in NAMES}
    videos[NAMES[3]]["annotations"] = []
    settings = DatasetSettings(
        num_classes=2,
        annotation_file=str(write_annotations(tmp_path / "a.json", **videos)),
        feature_dir=str(write_features(tmp_path / "features", lengths)),
        max_seq_len=64,
    )
    return FeatureDataset(settings, load_annotations(tmp_path / "a.json"), "validation", True, 4)


def assert_equal(ours, other):
    assert ours.video_ids == other.video_ids
    assert torch.equal(ours.features, other.features) and torch.equal(ours.mask, other.mask)
    for name in ("segments", "labels"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(ours, name), getattr(other, name), strict=True))


def test_items_are_crops_in_training(training_set):
    for index in range(len(training_set)):
        ((whole, _),) = training_set.files[index]
        item = training_set[ItemKey(index, "seed")]
        clips = item["features_CT"][0]
        assert len(clips) <= min(64, len(np.load(whole)))
        assert torch.equal(clips, clips[0] + torch.arange(len(clips)))
        # What the actions say about the first clip does not depend on the crop: (s 30 - 8) / 4.
        for (start, end), label in zip(item["segments_N2"] + clips[0], item["labels_N"]):
            if start > clips[0] and end < clips[-1] + 1:
                assert (start.item(), end.item()) == [(5.5, 20.5), (13.0, 16.75)][label]
    assert training_set[ItemKey(3, "seed")]["segments_N2"].shape == (0, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_batch_of_any_epoch_again(training_set, workers):
    settings = LoaderSettings(num_workers=workers, batch_size=3)
    loader = make_loader(training_set, settings, 32)
    assert len(loader) == 4
    epochs = {epoch: list(loader.epoch(epoch)) for epoch in (1, 2)}
    assert [len(batch.videos) for batch in epochs[1]] == [3, 3, 3, 2]
    for epoch, batches in epochs.items():
        assert sorted(name for batch in batches for name in batch.video_ids) == NAMES
        for start in range(len(loader) + 1):
            again = make_loader(training_set, LoaderSettings(num_workers=0, batch_size=3), 32)
            for ours, other in zip(again.epoch(epoch, start), batches[start:], strict=True):
                assert_equal(ours, other)
    assert epochs[1][0].video_ids != epochs[2][0].video_ids


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_each_batch(training_set, world, workers):
    settings = LoaderSettings(num_workers=workers, batch_size=4)
    wanted = list(make_loader(training_set, settings, 32).epoch(2))
    loaders = [make_loader(training_set, settings, 32, Share(rank, world)) for rank in range(world)]
    for start in (0, 2):
        shares = zip(*(loader.epoch(2, start) for loader in loaders), strict=True)
        for number, (whole, parts) in enumerate(zip(wanted[start:], shares, strict=True), start):
            rows = [loader.rows(number) for loader in loaders]
            assert {total for _, total in rows} == {len(whole.videos)}
            assert [row for own, _ in rows for row in own] == list(range(len(whole.videos)))
            assert [name for part in parts for name in part.video_ids] == whole.video_ids
            for (own, _), part in zip(rows, parts):
                assert len(part.videos) == len(own)
                if len(own):
                    assert torch.equal(part.features, whole.features[own.start : own.stop])
                else:  # a row of padding, so that the process has something to compute
                    assert part.features.shape == (1, 4, 64) and not part.features.any() and not part.mask.any()
                    assert [len(s) for s in part.segments] == [len(ids) for ids in part.labels] == [0]


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_processes_share_the_videos_of_evaluation(training_set, world):
    training_set.training = False
    loaders = [
        make_loader(training_set, LoaderSettings(num_workers=0), 32, Share(rank, world)) for rank in range(world)
    ]
    found = [[name for batch in loader.epoch(1) for name in batch.video_ids] for loader in loaders]
    assert sorted(name for names in found for name in names) == NAMES
    assert max(map(len, found)) - min(map(len, found)) <= 1 and [len(loader) for loader in loaders] == list(
        map(len, found)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_left_early(training_set, workers):
    loader = make_loader(training_set, LoaderSettings(num_workers=workers, batch_size=2), 32)
    expected = list(make_loader(training_set, LoaderSettings(num_workers=0, batch_size=2), 32).epoch(5))
    for taken in (0, 1, 3):
        batches = loader.epoch(4)
        for _ in range(taken):
            next(batches)
    for ours, other in zip(loader.epoch(5), expected, strict=True):
        assert_equal(ours, other)


def test_crops_differ_by_epoch_and_seed(training_set):
    def crops(seed, epoch):
        loader = make_loader(training_set, LoaderSettings(num_workers=0, batch_size=1, seed=seed), 32)
        return {batch.video_ids[0]: batch.features for batch in loader.epoch(epoch)}

    first = crops(1, 1)
    for other in (crops(1, 2), crops(2, 1)):
        assert sum(not torch.equal(first[name], other[name]) for name in NAMES) > len(NAMES) // 2


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_not_touched(training_set, workers):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    list(make_loader(training_set, LoaderSettings(num_workers=workers, batch_size=4), 32).epoch(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


def test_sampler_position():
    sampler = EpochSampler(7, 3, shuffle=True, seed=1)
    whole = list(sampler)
    assert len(sampler) == 3 and sorted(key.index for batch in whole for key in batch) == list(range(7))
    sampler.set_position(1, 2)
    assert list(sampler) == whole[2:] and len(sampler) == 3
    sampler.set_position(2, 0)
    assert list(sampler) != whole
    assert len({key.seed for batch in [*whole, *sampler] for key in batch}) == 14
    assert [key.index for batch in EpochSampler(5, 2, shuffle=False, seed=1) for key in batch] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("factor", "lengths"), [(1, [64, 64, 96, 128]), (48, [64, 64, 96, 192])])
def test_evaluation_takes_whole_videos_one_by_one(tmp_path, factor, lengths):
    clips = dict(zip("abcd", (1, 64, 65, 97)))
    settings = DatasetSettings(feature_dir=str(write_features(tmp_path / "f", clips)), max_seq_len=64)
    path = write_annotations(tmp_path / "a.json", **{name: video("Test") for name in clips})
    dataset = FeatureDataset(settings, load_annotations(path), "test", False, 4)
    loader = make_loader(dataset, LoaderSettings(batch_size=3, max_div_factor=factor, padding_value=-2.0), 32)
    batches = list(loader.epoch(1))
    assert [batch.video_ids for batch in batches] == [["a"], ["b"], ["c"], ["d"]]
    assert [batch.features.shape[-1] for batch in batches] == lengths
    assert [int(batch.mask.sum()) for batch in batches] == list(clips.values())
    assert (batches[0].features[0, :, 1:] == -2).all()
    assert all(batch.segments[0].tolist() == [[5.5, 13.0]] for batch in batches)


def build(tmp_path, videos, lengths, subset="Validation", training=True, feature_dim=4, **settings):
    settings = {
        "annotation_file": str(write_annotations(tmp_path / "a.json", **videos)),
        "feature_dir": str(write_features(tmp_path / "features", lengths)),
    } | settings
    annotations = load_annotations(tmp_path / "a.json")
    return FeatureDataset(DatasetSettings(**settings), annotations, subset, training, feature_dim)


def test_frame_rate_is_needed(tmp_path):
    videos, lengths = {"a": video(), "b": video(fps=None)}, {"a": 5, "b": 5}
    with pytest.raises(
        UsageError, match=r"video 'b' of .*a\.json has no fps: add it there, or set Dataset\.default_fps"
    ):
        build(tmp_path, videos, lengths)
    dataset = build(tmp_path, videos, lengths, default_fps=24.0)
    # It replaces the rate of the annotations, as published.
    assert [item["fps"] for item in dataset] == [24.0, 24.0] == [clip.fps for clip in dataset.videos]
    assert dataset[1]["segments_N2"].tolist() == [[(24 - 8) / 4, (48 - 8) / 4]]


def test_labels_fit_the_number_of_classes(tmp_path):
    with pytest.raises(
        UsageError, match=r"video 'b' of .* has label_id 3, but Dataset\.num_classes = 3: set it .* to 4 or more"
    ):
        build(tmp_path, {"a": video(), "b": video(annotations=[([0, 1], "D", 3)])}, {"a": 5, "b": 5}, num_classes=3)


def test_subset_must_exist(tmp_path):
    videos = {"a": video("Validation"), "b": video("Test")}
    with pytest.raises(UsageError, match=r"no video of .* is in subset 'Valdation': did you mean 'Validation'\?"):
        build(tmp_path, videos, {"a": 5, "b": 5}, subset="Valdation")
    with pytest.raises(UsageError, match=r"no video of .* is in subset 'Test': none has a subset, add it there"):
        build(tmp_path, {"a": video("")}, {"a": 5}, subset="Test")
    with pytest.raises(UsageError, match=r"subset 'Test' of .* has no action to train on: choose another"):
        build(tmp_path, {"b": video("Test", annotations=[])}, {"b": 5}, subset="Test")
    assert len(build(tmp_path, {"b": video("Test", annotations=[])}, {"b": 5}, subset="Test", training=False)) == 1


def test_missing_files_are_counted_and_named(tmp_path):
    videos = {name: video() for name in NAMES}
    message = (
        r"8 of 11 feature files of subset 'Validation' are missing in '.*features': "
        r"v03\.\*, v04.*, v07\S*, \.\.\.: check"
    )
    present = {name: 9 for name in NAMES[:3]}
    with pytest.raises(UsageError, match=message + r".* or set Dataset\.skip_missing = True to go on without") as error:
        build(tmp_path, videos, present)
    assert "v08" not in str(error.value)


def test_going_on_without_missing_files(tmp_path, capsys):
    dataset = build(tmp_path, {name: video() for name in NAMES}, {name: 9 for name in NAMES[4:]}, skip_missing=True)
    assert dataset.missing == NAMES[:4] and [item["video_id"] for item in dataset] == NAMES[4:]
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "warning: 4 of 11 feature files of subset" in warning


@pytest.mark.parametrize("skip", [True, False])
def test_all_files_missing_is_always_an_error(tmp_path, skip):
    with pytest.raises(
        UsageError, match=r"1 of 1 feature files of .* are missing in 'nowhere': a\.npy: check Dataset\.feature_dir"
    ) as error:
        build(tmp_path, {"a": video()}, {}, skip_missing=skip, feature_dir="nowhere", feature_ext=".npy")
    assert "skip_missing" not in str(error.value)


@pytest.mark.parametrize("training", [True, False])
def test_resized_videos_need_no_frame_rate(tmp_path, training):
    """Position x lies at (x + 0.5) duration / max_seq_len seconds, whatever stride and length the features had."""
    videos = {name: video(fps=None, duration="20", annotations=[([5.0, 10.0], "A", 0)]) for name in "ab"}
    settings = {"resize": True, "max_seq_len": 40, "crop_ratio": None}
    dataset = build(tmp_path, videos, {"a": 7, "b": 90}, training=training, **settings)
    for item, length in zip(dataset, (7, 90)):
        assert item["features_CT"].shape == (4, 40) and item["segments_N2"].tolist() == [[9.5, 19.5]]
        assert (item["fps"], item["duration"]) == (2.0, 20.0) == (item["video"].fps, item["video"].duration)
        np.testing.assert_allclose(  # the first channel counts the clips
            item["features_CT"][0],
            ((np.arange(40) + 0.5) * length / 40 - 0.5).clip(0, length - 1),
            rtol=1e-5,
            atol=1e-5,
        )
    (batch,) = make_loader(dataset, LoaderSettings(batch_size=2), 32).epoch(1) if training else [None]
    assert batch is None or (batch.features.shape, bool(batch.mask.all())) == ((2, 4, 40), True)


def test_resized_videos_are_cropped_after_it(tmp_path):
    dataset = build(tmp_path, {"a": video()}, {"a": 7}, resize=True, max_seq_len=40, crop_ratio=(0.5, 0.5))
    assert dataset[0]["features_CT"].shape == (4, 20)


def test_resized_videos_of_unknown_duration_end_with_their_last_clip(tmp_path):
    videos = {"a": video(fps=20.0, duration=None, annotations=[([0.0, 1.2], "A", 0)])}
    dataset = build(tmp_path, videos, {"a": 3}, training=False, resize=True, max_seq_len=12)
    assert dataset[0]["duration"] == (2 * 4 + 16) / 20.0 == 1.2
    assert dataset[0]["segments_N2"].tolist() == [[-0.5, 11.5]]
    with pytest.raises(UsageError, match=r"video 'a' of .* has neither duration nor fps: add it there, or set"):
        build(tmp_path, {"a": video(fps=None, duration=None)}, {}, resize=True)


def test_class_agnostic_training_knows_one_class_and_evaluation_all(tmp_path):
    videos = {"a": video(annotations=[([0.3, 1.0], "A", 0), ([0.5, 1.0], "C", 2)])}
    for training, labels in ((True, [0, 0]), (False, [0, 2])):
        dataset = build(tmp_path, videos, {"a": 9}, training=training, class_agnostic=True, crop_ratio=None)
        assert dataset[0]["labels_N"].tolist() == labels
        assert dataset.videos[0].labels_N.tolist() == [0, 2]


def test_excluded_videos_are_left_out_in_any_spelling(tmp_path):
    videos = {name: video() for name in ("a", "v_b", "c")}
    dataset = build(tmp_path, videos, {"a": 9}, exclude=["b", "v_c", "unknown"])
    assert [item["video_id"] for item in dataset] == ["a"] and dataset.missing == []
    with pytest.raises(UsageError, match="has no action to train on"):
        build(tmp_path, videos, {}, exclude=["a", "b", "c"])


@pytest.mark.parametrize("resize", [False, True])
def test_streams_are_joined(tmp_path, resize):
    """RGB and flow; the flow of a video is a clip shorter, or, where it is resized, of any length."""
    write_features(tmp_path / "rgb", {"a": 9}), write_features(tmp_path / "flow", {"a": 5 if resize else 8}, channels=2)
    folders = [str(tmp_path / "rgb"), str(tmp_path / "flow")]
    options = {"feature_dir": folders, "resize": resize, "max_seq_len": 64, "training": False}
    item = build(tmp_path, {"a": video()}, {}, feature_dim=6, **options)[0]
    assert item["features_CT"].shape == (6, 64 if resize else 8)
    ends = (8, 4) if resize else (7, 7)
    assert (item["features_CT"][0, -1], item["features_CT"][4, -1]) == ends
    with pytest.raises(RunError, match=r"rgb/a\.npy \+ .*flow/a\.npy: shape .*: expected 5 channels"):
        build(tmp_path, {"a": video()}, {}, feature_dim=5, **options)[0]
    with pytest.raises(
        UsageError, match=r"feature files of subset 'Validation' are missing in '.*rgb', '.*flow': b\.\*:"
    ):
        build(tmp_path, {"b": video()}, {}, **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"feature_dir": ["a", "b"], "feature_type": ["x", "y", "z"]}, "give lists of one length, or only one of them"),
        ({"feature_type": []}, "give lists of one length"),
        ({"resize": True, "downsample_rate": 2}, "downsample_rate = 2: must be 1 with Dataset.resize = True"),
    ],
)
def test_settings_that_contradict_each_other(bad, message):
    with pytest.raises(UsageError, match=message):
        DatasetSettings(**bad)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_features_are_one_line_even_from_a_worker(tmp_path, workers):
    dataset = build(tmp_path, {"a": video(), "b": video()}, {"a": 5, "b": 5}, feature_dim=6)
    loader = make_loader(dataset, LoaderSettings(num_workers=workers), 32)
    with pytest.raises(RunError, match=r"\.npy: shape \(5, 4\): expected 6 channels in the last axis") as error:
        list(loader.epoch(1))
    assert "\n" not in str(error.value)


def test_features_of_two_kinds_in_a_batch(tmp_path):
    dataset = build(tmp_path, {"a": video(), "b": video()}, {"a": 5}, feature_dim=None, skip_missing=True)
    write_features(tmp_path / "features", {"b": 5}, channels=3)
    dataset = build(tmp_path, {"a": video(), "b": video()}, {}, feature_dim=None)
    with pytest.raises(RunError, match="features of one batch differ in channels"):
        list(make_loader(dataset, LoaderSettings(num_workers=0), 32).epoch(1))


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_more_workers_than_batches(training_set):
    loader = make_loader(training_set, LoaderSettings(num_workers=500, batch_size=8), 32)
    assert [len(batch.videos) for batch in loader.epoch(1)] == [8, 3]


@real_data
def test_real_clips():
    path = real("gym_i3d/annotations.json")
    settings = DatasetSettings(feature_dir=str(real("gym_i3d/i3d_features")), max_seq_len=64, train_subset="training")
    dataset = FeatureDataset(settings, load_annotations(path), settings.train_subset, True, 2048)
    batches = list(make_loader(dataset, LoaderSettings(num_workers=0, batch_size=4), 32).epoch(1))
    assert sum(len(batch.videos) for batch in batches) == 30
    assert all(batch.features.shape[1:] == (2048, 64) and batch.features.isfinite().all() for batch in batches)


@real_data
def test_real_untrimmed_video():
    settings = DatasetSettings(feature_dir=str(real("gym_i3d")), max_seq_len=64, skip_missing=True)
    dataset = FeatureDataset(settings, load_annotations(real("gym_i3d/gt.json")), "test", False, 2048)
    (batch,) = make_loader(dataset, LoaderSettings(num_workers=0), 32).epoch(1)
    assert batch.video_ids == ["highjump.npy"] and batch.features.shape == (1, 2048, 192)
    assert batch.mask.sum() == 164 and batch.labels[0].tolist() == [11]
