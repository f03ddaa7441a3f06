"""Recorded launches on a CPU."""

import torch

from rdfa.runtime.cuda_graph import WARM_UP, Recording


class Replay:
    """Stands for a graph: computes from the recording's inputs into its outputs."""

    def __init__(self, function, inputs, output):
        self._function, self._inputs, self._output = function, inputs, output

    def replay(self):
        value = self._function(*self._inputs)
        for own, new in [(self._output, value)] if torch.is_tensor(value) else zip(self._output, value):
            own.copy_(new)

    def pool(self):
        return None


def record(function, inputs, pool=None):
    """`rdfa.runtime.cuda_graph.record`, with its calls that are no recording."""
    for _ in range(WARM_UP):
        output = function(*inputs)
    return Recording(Replay(function, inputs, output), inputs, output)
