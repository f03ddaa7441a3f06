"""The launches of a whole detector as one: a CUDA graph for each batch size and length.

Shapes: B batch, C feature channels, T time steps.
"""

import bisect
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

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
        self._graphs: OrderedDict[tuple, _Recording] = OrderedDict()
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
            self._graphs[key] = _record(self._detector, features, mask, size)
        self._graphs.move_to_end(key)
        recording = self._graphs[key]
        for given, own in ((features, recording.features), (mask, recording.mask)):
            own[:batch].copy_(given, non_blocking=True)
            own[batch:].zero_()
        recording.graph.replay()
        return tuple(output[:batch].clone() for output in recording.outputs)


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    features: Tensor
    mask: Tensor
    outputs: tuple[Tensor, ...]


def _record(detector, features, mask, size):
    own = [t.new_zeros(size, *t.shape[1:]) for t in (features, mask)]
    # The first calls compile and load kernels and choose algorithms, which a recording forbids.
    stream = torch.cuda.Stream(features.device)
    stream.wait_stream(torch.cuda.current_stream(features.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            detector(*own)
    torch.cuda.current_stream(features.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = tuple(detector(*own))
    return _Recording(graph, *own, outputs)
