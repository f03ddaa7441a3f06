"""The launches of a whole detector as one: a CUDA graph for each batch size and length.

Shapes: B batch, C feature channels, T time steps.
"""

import bisect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

BATCHES = (1, 2, 4, 8, 16, 32)
WARM_UP = 2


class GraphedDetector:
    """`detector(features_BCT, mask_BT)` on a GPU, recorded at the second call of a size and replayed from then on.

    A batch is filled up with empty videos to the next of `BATCHES`, and taken in parts if it is larger than the last.
    Lengths are taken as they are, because padding in time is part of a detector's input; one that comes once, as those
    of long videos do, costs no recording. The `graphs` sizes used last are kept; each holds the memory of its
    activations. Results are the caller's own. Not for several threads at a time.
    """

    def __init__(self, detector: Callable[[Tensor, Tensor], tuple[Tensor, ...]], graphs: int = 8):
        self._detector, self._most = detector, graphs
        self._graphs: OrderedDict[tuple, Recording] = OrderedDict()
        self._seen: set[tuple] = set()

    @torch.inference_mode()
    def __call__(self, features_BCT: Tensor, mask_BT: Tensor) -> tuple[Tensor, ...]:
        parts = zip(features_BCT.split(BATCHES[-1]), mask_BT.split(BATCHES[-1]))
        outputs = [self._part(features, mask) for features, mask in parts]
        return outputs[0] if len(outputs) == 1 else tuple(torch.cat(parts) for parts in zip(*outputs))

    def _part(self, features, mask):
        batch = len(features)
        size = BATCHES[bisect.bisect_left(BATCHES, batch)]
        key = size, *features.shape[1:], features.dtype
        if key not in self._graphs:
            if key not in self._seen:
                self._seen.add(key)
                return self._detector(features, mask)
            if len(self._graphs) == self._most:
                self._graphs.popitem(last=False)
            own = tuple(t.new_zeros(size, *t.shape[1:]) for t in (features, mask))
            self._graphs[key] = record(self._detector, own)
        self._graphs.move_to_end(key)
        recording = self._graphs[key]
        for given, own in zip((features, mask), recording.inputs):
            own[:batch].copy_(given, non_blocking=True)
            own[batch:].zero_()
        recording.graph.replay()
        return tuple(output[:batch].clone() for output in recording.output)


class Recording(NamedTuple):
    """`graph.replay()` computes `output` from `inputs`, tensors that stay where they are."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Any


def record(function: Callable[..., Any], inputs: tuple[Tensor, ...], pool: Any = None) -> Recording:
    """The launches of `function(*inputs)`, which is called `WARM_UP` times first.

    Args:
        pool: `graph.pool()` of a recording that will never run at the same time: its memory is shared. An output is
            then to be read before the next replay of either.
    """
    device = inputs[0].device
    # The first calls compile and load kernels and choose algorithms, which a recording forbids.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function(*inputs)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads may load data
        output = function(*inputs)
    return Recording(graph, inputs, output)
