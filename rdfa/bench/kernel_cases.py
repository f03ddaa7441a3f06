"""The operators of the detector, one call at a time, as a CPU is measured on them.

Shapes: B batch, D channels, N states, W width, L length. Tensors are laid out as in the detector: channels lie next to
each other, the operators see [B, D, L] views.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ops import causal_conv1d, selective_scan
from ops.causal_conv1d.reference import causal_conv1d_reference
from ops.selective_scan.reference import selective_scan_reference
from rdfa.bench.kernel_rows import PLAIN
from rdfa.modeling.backbone import GATE_LENGTH
from rdfa.modeling.fa_bi_s6 import AGGREGATED, SINGLE
from rdfa.modeling.settings import ModelSettings

NATIVE = "native"
STATES = 16
SCAN_INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
CONV_INPUTS = ("x", "weight", "bias")


@dataclass(frozen=True)
class Case:
    """One operator of one layer. `states` is 0 for the convolution, `width` for the scan."""

    layer: str
    batch: int
    channels: int
    length: int
    states: int = 0
    width: int = 0

    @property
    def kernel(self) -> str:
        return "selective_scan" if self.states else "causal_conv1d"

    @property
    def inputs(self) -> tuple[str, ...]:
        return SCAN_INPUTS if self.states else CONV_INPUTS

    @property
    def elements(self) -> int:
        return self.batch * self.channels * self.length * max(self.states, 1)

    def functions(self) -> dict[str, Callable[..., Tensor]]:
        """Provider -> the operator as the detector calls it, of the tensors that `tensors` makes."""
        if not self.states:
            providers = {NATIVE: causal_conv1d, PLAIN: causal_conv1d_reference}
            return {name: partial(function, activation="silu") for name, function in providers.items()}

        def gated(function, u, delta, A, B, C, D, z, delta_bias):
            return function(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)

        return {NATIVE: partial(gated, selective_scan), PLAIN: partial(gated, selective_scan_reference)}

    def tensors(self, batch: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
        """The operator's inputs, then the gradient of its output. Weights stay in float32, as in the detector."""
        random = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=random)

        def over_time(channels):
            return normal(batch, self.length, channels).to(dtype).transpose(1, 2)

        if not self.states:
            weights = normal(self.channels, self.width).to(dtype), normal(self.channels).to(dtype)
            return [over_time(self.channels), *weights, over_time(self.channels)]
        A = -torch.arange(1.0, self.states + 1).repeat(self.channels, 1)
        u, delta, z, gradient = (over_time(self.channels) for _ in range(4))
        B, C = over_time(self.states), over_time(self.states)
        return [u, delta, A, B, C, normal(self.channels), z, normal(self.channels) - 4, gradient]


def layers(model: ModelSettings, length: int) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """Name, channels, length and widths of each FA-Bi-S6 of a detector with an input of `length` steps."""
    inner = model.stem.emb_c
    found = [("stem time", inner, length, AGGREGATED), ("stem gate", GATE_LENGTH, inner, AGGREGATED)]
    return found + [
        (f"branch {i + 1}", model.branch.emb_c, length // 2**i, SINGLE) for i in range(model.branch.block_n)
    ]


def cases(model: ModelSettings, batches: Sequence[int], length: int) -> list[Case]:
    """Every scan, then every convolution of a detector with an input of `length` steps; equal sizes share a case."""
    sizes: dict[tuple[int, int, int, int], list[str]] = {}
    for name, channels, steps, _ in layers(model, length):
        sizes.setdefault((channels, steps, STATES, 0), []).append(name)
    for name, channels, steps, widths in layers(model, length):
        for width in widths:
            sizes.setdefault((channels, steps, 0, width), []).append(name)
    return [Case(", ".join(names), batch, *size) for batch in batches for size, names in sizes.items()]
