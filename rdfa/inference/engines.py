"""Detection in many videos: batch after batch in this process, or spread over the processes of a Ray cluster."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rdfa.data.dataset import FeatureDataset
from rdfa.errors import RunError, UsageError
from rdfa.inference.batches import PlannedBatch, load_batches
from rdfa.inference.detectors import Source
from rdfa.inference.fusion import ClassScores
from rdfa.inference.journal import Row
from rdfa.inference.pipeline import detect_videos
from rdfa.inference.results import entries_text

BLOCK = 8  # batches that a process of the cluster takes at a time, to read ahead in

Found = tuple[PlannedBatch, list[Row]]


@dataclass(frozen=True)
class Task:
    """What any process needs to detect in the videos of a data set, beside the detector."""

    dataset: FeatureDataset
    class_names: dict[int, str]  # of the detections
    class_scores: ClassScores | None

    def run(self, source: Source, plan: Sequence[PlannedBatch]) -> Iterator[Found]:
        """Each batch and its results, in order.

        Raises:
            RunError: a video that cannot be read, or that the detector fails on; names it.
        """
        padding = source.config.loader.padding_value
        batches = load_batches(self.dataset, plan, padding, source.config.padding_multiple)
        found = detect_videos(source.runner, batches, self.dataset.settings, source.config.post, self.class_scores)
        for planned in plan:
            videos = itertools.islice(found, len(planned.indices))
            yield planned, [Row(i, len(d), entries_text(i, d, self.class_names)) for i, d in videos]


def run_on_ray(
    task: Task, source: Source, open_source: Callable[[], Source], plan: Sequence[PlannedBatch]
) -> Iterator[Found]:
    """As `Task.run`, over the cluster that `ray.init` finds (RAY_ADDRESS, else this machine), as batches are done.

    Every process opens the detector and reads the files by itself: their paths must lead to them on every machine.
    Each computes with as many threads as this process would, which the last bits of a sum depend on.

    Args:
        open_source: opens `source` again, in another process.

    Raises:
        UsageError: Ray is not installed, or no machine has as many processors. RunError: as `Task.run`.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("--engine ray needs Ray: pip install 'rdfa-s6[cluster]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    threads, blocks = torch.get_num_threads(), -(-len(plan) // BLOCK)
    on_gpu = source.identity.get("device") == "cuda"
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [(node.get("CPU", 0) // threads, node.get("GPU", 0) if on_gpu else math.inf) for node in resources]
    actors = int(sum(map(min, rooms)))
    if not actors:
        raise UsageError(
            f"no machine of the Ray cluster has {threads} processors{' and a GPU' if on_gpu else ''}, which each "
            "detector takes: set OMP_NUM_THREADS to fewer"
        )
    # Items, unlike a range, are in the store already: no task must wait for a processor that a detector holds.
    items = ray.data.from_items([{"id": i} for i in range(len(plan))], override_num_blocks=blocks)
    outcomes = items.map_batches(
        _Detector,
        batch_size=BLOCK,
        compute=ray.data.ActorPoolStrategy(size=min(actors, blocks)),
        num_cpus=threads,
        num_gpus=1 if on_gpu else None,
        fn_constructor_args=(task, open_source, tuple(plan), threads),
    )
    for outcome in outcomes.iter_rows():
        if outcome["error"]:
            raise RunError(outcome["error"])
        yield plan[outcome["id"]], [Row(*row) for row in json.loads(outcome["rows"])]


class _Detector:
    """One process of the cluster: opens the detector once, then takes blocks of batches."""

    def __init__(self, task: Task, open_source: Callable[[], Source], plan: tuple[PlannedBatch, ...], threads: int):
        torch.set_num_threads(threads)
        self.task, self.source, self.plan = task, open_source(), plan

    def __call__(self, block: dict[str, Any]) -> Iterator[dict[str, list]]:
        indices = block["id"].tolist()
        done = 0
        try:
            for _, rows in self.task.run(self.source, [self.plan[i] for i in indices]):
                yield {"id": [indices[done]], "rows": [json.dumps(rows)], "error": [""]}
                done += 1
        except (UsageError, RunError) as error:  # raised here it would reach the user as a traceback in a message
            yield {"id": [indices[done]], "rows": [""], "error": [str(error)]}
