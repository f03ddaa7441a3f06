"""Which videos are detected in together, decided before the first is read, and the threads that read ahead.

What a detector computes for a video depends, in the last bits, on the videos of its batch. Batches that are a function
of the data set alone are therefore what makes results equal whatever is interrupted, and wherever a batch is run.
"""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rdfa.data.dataset import Batch, FeatureDataset, pad_batch
from rdfa.data.transforms import padded_length

READERS = 4  # threads: they wait for files most of the time


class PlannedBatch(NamedTuple):
    """Videos of one padded length, by their index in the data set; `key` changes when they or their files change."""

    key: str
    indices: tuple[int, ...]


def plan_batches(dataset: FeatureDataset, batch_size: int, multiple: int) -> list[PlannedBatch]:
    """Batches of up to `batch_size` videos that are padded to the same length, the longest first.

    Padding changes detections, so only videos whose own padding gives one length can share a batch: to
    `Dataset.max_seq_len` for those up to it, to the next multiple of `multiple` for longer ones. The order of the
    data set is kept within each length. Single videos need no lengths, and stay in the order of the data set.

    Raises:
        RunError: a feature file that cannot be read.
    """
    if batch_size == 1:
        groups = [(index,) for index in range(len(dataset))]
        return [PlannedBatch(_key(dataset, group), group) for group in groups]
    with ThreadPoolExecutor(READERS) as pool:
        clips = list(pool.map(dataset.num_clips, range(len(dataset))))
    lengths = [padded_length(n, dataset.settings.max_seq_len, multiple, training=False) for n in clips]
    order = sorted(range(len(dataset)), key=lambda index: -lengths[index])
    batches = []
    for _, same in itertools.groupby(order, key=lambda index: lengths[index]):
        while group := tuple(itertools.islice(same, batch_size)):
            batches.append(PlannedBatch(_key(dataset, group), group))
    return batches


def load_batches(
    dataset: FeatureDataset, plan: Iterable[PlannedBatch], padding_value: float, multiple: int
) -> Iterator[Batch]:
    """The batches of `plan`, in order; `READERS` are read ahead while one is in use.

    Raises while iterating what the data set raised.
    """

    def load(planned: PlannedBatch) -> Batch:
        items = [dataset[index] for index in planned.indices]
        return pad_batch(items, dataset.settings.max_seq_len, padding_value, multiple, training=False)

    remaining = iter(plan)
    with ThreadPoolExecutor(READERS) as pool:
        ahead = deque(pool.submit(load, planned) for planned in itertools.islice(remaining, READERS))
        try:
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(load, planned) for planned in itertools.islice(remaining, 1))
                yield batch
        finally:
            for future in ahead:
                future.cancel()


def _key(dataset: FeatureDataset, indices: tuple[int, ...]) -> str:
    """A hash of everything about these videos that detections depend on; files count by name, size and time."""
    rows = []
    for index in indices:
        video, files = dataset.videos[index], []
        for file in dataset.files[index]:
            status = file.path.stat()
            files.append([file.path.name, file.key, status.st_size, status.st_mtime_ns])
        rows.append([video.id, video.fps, video.duration, files])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]
