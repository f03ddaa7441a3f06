"""The operators of a whole FA-Bi-S6 inner, all branches and both directions in one call, as a GPU is measured on them.

Letters: S sequences in the batch, K branches, D channels, N states, L length; the leading 2 is the direction, of which
the second reads time from the end. Inputs are contiguous along time.

    scan          u, delta [2,S,K*D,L], A [D,N], B, C [2,S,N,L], D, delta_bias [D], z [2,S,D,L] -> y [S,2*K*D,L]
    convolution   x [2,S,D,L], per branch weight [D,W] and bias [D] -> u [2,S,K*D,L]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rdfa.bench.kernel_cases import STATES, layers
from rdfa.modeling.fa_bi_s6 import SINGLE
from rdfa.modeling.settings import ModelSettings

# mamba-ssm has a faster path at multiples of 2048 steps: the detector has none of them, so they are measured apart.
ALIGNED_LENGTHS = tuple(2**k for k in range(10, 17))
ALIGNED = "power of two"


@dataclass(frozen=True)
class FusedCase:
    """One layer's scan, or its convolution where `states` is 0; one branch for each of `widths`."""

    layer: str
    batch: int
    channels: int
    length: int
    widths: tuple[int, ...]
    states: int = 0

    @property
    def kernel(self) -> str:
        return "selective_scan" if self.states else "causal_conv1d"

    @property
    def output(self) -> str:
        """Name of the operator's output; its gradient is the last input, `grad_` + this."""
        return "y" if self.states else "u"

    @property
    def steps(self) -> int:
        """(direction, sequence, branch, channel, time step) that one call computes."""
        return 2 * self.batch * len(self.widths) * self.channels * self.length

    @property
    def elements(self) -> int:
        return self.steps * max(self.states, 1)

    @property
    def exponentials(self) -> int:
        """Operations of the exponential unit in a scan: the decay of each state, and three for softplus and gate."""
        return self.steps * (self.states + 3) if self.states else 0

    def inputs(self, device: str, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        """The operator's arguments by name, then the gradient of its output. A, D and delta_bias stay in float32."""
        random = torch.Generator(device).manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=random, device=device)

        S, K, D, L = self.batch, len(self.widths), self.channels, self.length
        if not self.states:
            weights = {f"weight{w}": normal(D, w).to(dtype) for w in self.widths}
            biases = {f"bias{w}": normal(D).to(dtype) for w in self.widths}
            return {"x": normal(2, S, D, L).to(dtype), **weights, **biases, "grad_u": normal(2, S, K * D, L).to(dtype)}
        return {
            "u": normal(2, S, K * D, L).to(dtype),
            "delta": normal(2, S, K * D, L).to(dtype),
            "A": -torch.arange(1.0, self.states + 1, device=device).repeat(D, 1),
            "B": normal(2, S, self.states, L).to(dtype),
            "C": normal(2, S, self.states, L).to(dtype),
            "D": normal(D),
            "z": normal(2, S, D, L).to(dtype),
            "delta_bias": normal(D) - 4,
            "grad_y": normal(S, 2 * K * D, L).to(dtype),
        }

    def memory_bytes(self, inputs: dict[str, Tensor], mode: str) -> int:
        """What one call has to read and write at least: arguments and output, for the backward also their gradients."""
        arguments = sum(t.numel() * t.element_size() for name, t in inputs.items() if not name.startswith("grad_"))
        gradient = inputs[f"grad_{self.output}"]
        output = gradient.numel() * gradient.element_size()
        return output + arguments * (1 if mode == "forward" else 2)


def cases(model: ModelSettings, batches: Sequence[int], lengths: Sequence[int]) -> list[FusedCase]:
    """Every scan, then every convolution, of a detector with inputs of `lengths` steps.

    Without `lengths`: of the model's own length, and one branch at the powers of two.
    """
    sizes = [
        (layer, batch, channels, steps, widths)
        for length in lengths or (model.generator.max_seq_len,)
        for batch in batches
        for layer, channels, steps, widths in layers(model, length)
    ]
    if not lengths:
        sizes += [(ALIGNED, 1, model.branch.emb_c, length, SINGLE) for length in ALIGNED_LENGTHS]
    return [FusedCase(*size, states) for states in (STATES, 0) for size in sizes]
