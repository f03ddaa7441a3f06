"""Plans of batches: of one padded length, the longest first, and named after all that their detections depend on."""

import numpy as np
import pytest

from rdfa.data.annotations import AnnotationSet, Video
from rdfa.data.dataset import FeatureDataset
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError
from rdfa.inference.batches import load_batches, plan_batches


def open_dataset(folder, lengths, fps=10.0, **settings):
    videos = {}
    for i, length in enumerate(lengths):
        if not (folder / f"v{i}.npy").exists():
            np.save(folder / f"v{i}.npy", np.full((length, 3), i, np.float32))
        videos[f"v{i}"] = Video(f"v{i}", "", 9.0, fps, np.empty((0, 2)), np.empty(0, int))
    settings = DatasetSettings(feature_dir=str(folder), max_seq_len=16, **settings)
    return FeatureDataset(settings, AnnotationSet(videos, {}), "", False, 3)


def indices(plan):
    return [batch.indices for batch in plan]


def test_batches_share_a_padded_length_and_the_longest_come_first(tmp_path):
    dataset = open_dataset(tmp_path, [5, 17, 16, 20, 33, 7, 1])
    assert indices(plan_batches(dataset, 2, 8)) == [(4,), (1, 3), (0, 2), (5, 6)]
    assert indices(plan_batches(dataset, 1, 8)) == [(i,) for i in range(7)]
    # Half as long, and resized: all are padded to 16.
    halves = open_dataset(tmp_path, [5, 17, 16, 20, 33, 7, 1], downsample_rate=2)
    assert indices(plan_batches(halves, 4, 8)) == [(4,), (0, 1, 2, 3), (5, 6)]
    assert indices(plan_batches(open_dataset(tmp_path, [5, 17, 16, 20, 33, 7, 1], resize=True), 9, 8)) == [
        tuple(range(7))
    ]


def test_keys_change_with_the_videos_and_their_files_only(tmp_path):
    def keys(**options):
        return [batch.key for batch in plan_batches(open_dataset(tmp_path, [5, 9, 30], **options), 2, 8)]

    before = keys()
    assert keys() == before and len(set(before)) == 2
    assert all(a != b for a, b in zip(keys(fps=11.0), before))
    np.save(tmp_path / "v1.npy", np.zeros((10, 3), np.float32))
    assert [a == b for a, b in zip(keys(), before)] == [True, False]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_are_read_ahead_in_order_and_errors_arrive_in_their_place(tmp_path, batch_size):
    dataset = open_dataset(tmp_path, range(1, 30))
    plan = plan_batches(dataset, batch_size, 8)
    batches = load_batches(dataset, plan, 0.0, 8)
    assert [batch.video_ids for batch in batches] == [[f"v{i}" for i in planned.indices] for planned in plan]
    np.save(tmp_path / "v20.npy", np.full((21, 3), np.nan, np.float32))
    bad = next(n for n, planned in enumerate(plan) if 20 in planned.indices)
    batches = load_batches(dataset, plan, 0.0, 8)
    assert [next(batches).video_ids for _ in range(bad)] == [[f"v{i}" for i in p.indices] for p in plan[:bad]]
    with pytest.raises(RunError, match=r"v20\.npy"):
        next(batches)
