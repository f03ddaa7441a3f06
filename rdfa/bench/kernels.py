"""The operators alone, over every shape that the detector gives them: native kernel against the plain reference.

Each provider's result (forward: the output; backward: every gradient) is first compared with the plain reference in
float64. A kernel whose error exceeds twice that of the plain reference in the same dtype shows no speed.

Shapes: B batch, D channels, N states, W width, L length. Tensors are laid out as in the detector: channels lie next to
each other, the operators see [B, D, L] views.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ops import causal_conv1d, selective_scan
from ops.causal_conv1d.reference import causal_conv1d_reference
from ops.selective_scan.reference import selective_scan_reference
from rdfa.bench import timing
from rdfa.modeling.backbone import GATE_LENGTH
from rdfa.modeling.fa_bi_s6 import AGGREGATED, SINGLE
from rdfa.modeling.settings import ModelSettings
from rdfa.runtime.torch_threads import pinned

NATIVE, PLAIN = "native", "plain"
MODES = ("forward", "backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STATES = 16
INPUTS = 3
# The plain reference keeps some five tensors of B*D*N*L elements for its backward: more than this is left out.
PLAIN_ELEMENTS = 2**26
# The comparison in float64 takes as many videos of the batch as fit in this number of elements, and at least one.
CHECKED_ELEMENTS = 2**25


@dataclass
class KernelRow:
    """One measurement. The order of the fields is the order of the columns in kernels.csv."""

    kernel: str
    layer: str
    mode: str
    provider: str
    batch: int
    channels: int
    states: int | None
    width: int | None
    length: int
    dtype: str
    device: str
    threads: int
    verdict: str
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    samples: int = 0
    ns_per_element: float | None = None  # element: one (b, d, n, l) of the scan, one (b, d, l) of the convolution
    speedup_vs_plain: float | None = None
    relative_l2: float | None = None  # against float64; backward: of the worst gradient
    plain_relative_l2: float | None = None
    machine: str = ""
    git_commit: str | None = None
    time: str = ""


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


def cases(model: ModelSettings, batches: Sequence[int], length: int) -> list[Case]:
    """Every scan, then every convolution of a detector with an input of `length` steps; equal sizes share a case."""
    inner = model.stem.emb_c
    layers = [("stem time", inner, length, AGGREGATED), ("stem gate", GATE_LENGTH, inner, AGGREGATED)]
    layers += [(f"branch {i + 1}", model.branch.emb_c, length // 2**i, SINGLE) for i in range(model.branch.block_n)]
    sizes: dict[tuple[int, int, int, int], list[str]] = {}
    for name, channels, steps, _ in layers:
        sizes.setdefault((channels, steps, STATES, 0), []).append(name)
    for name, channels, steps, widths in layers:
        for width in widths:
            sizes.setdefault((channels, steps, 0, width), []).append(name)
    return [Case(", ".join(names), batch, *size) for batch in batches for size, names in sizes.items()]


def run(
    chosen: Iterable[Case],
    seconds: float,
    threads: int,
    *,
    native_available: bool,
    functions: Callable[[Case], dict[str, Callable[..., Tensor]]] = Case.functions,
    clock: timing.Clock = time.perf_counter,
    progress: Callable[[str], None] = lambda line: None,
) -> list[KernelRow]:
    """Rows of every case in both modes and all dtypes; providers of one measurement take turns.

    Args:
        native_available: False gives skipped rows in the place of the native ones.
        functions: the providers of a case.
    """
    rows = []
    with pinned(threads):
        for case in chosen:
            for name in DTYPES:
                for mode in MODES:
                    progress(f"{case.kernel}, {case.layer}, batch {case.batch}: {mode}, {name}")
                    rows += _measure(case, mode, name, functions(case), native_available, seconds, threads, clock)
    return rows


def _measure(
    case: Case,
    mode: str,
    dtype: str,
    functions: dict[str, Callable[..., Tensor]],
    native_available: bool,
    seconds: float,
    threads: int,
    clock: timing.Clock,
) -> list[KernelRow]:
    videos = max(1, min(case.batch, CHECKED_ELEMENTS * case.batch // case.elements))
    example = case.tensors(videos, DTYPES[dtype], seed=0)
    exact = _result(functions[PLAIN], mode, [t.double() for t in example])
    plain_error = _error(_result(functions[PLAIN], mode, example), exact)
    inputs = [case.tensors(case.batch, DTYPES[dtype], seed) for seed in range(INPUTS)]
    rows, calls = [], {}
    for provider, function in functions.items():
        verdict, error = "valid", None
        if provider == NATIVE and not native_available:
            verdict = "skipped: the native library is not built (python -m ops.build)"
        elif provider == PLAIN and mode == "backward" and case.elements > PLAIN_ELEMENTS:
            verdict = f"skipped: the plain backward would keep {case.elements / 2**28 * 5:.0f} GB"
        else:
            error = _error(_result(function, mode, example), exact)
            if not error <= 2 * plain_error + 1e-6:
                verdict = f"invalid: relative error {error:.2g}, the plain reference has {plain_error:.2g}"
        rows.append(
            KernelRow(
                case.kernel, case.layer, mode, provider, case.batch, case.channels, case.states or None,
                case.width or None, case.length, dtype, "cpu", threads, verdict,
                relative_l2=error, plain_relative_l2=plain_error,
            )
        )  # fmt: skip
        if verdict == "valid":
            calls[provider] = _call(function, mode, inputs)
    samples = timing.measure(calls, seconds, clock) if calls else {}
    for row in rows:
        if row.provider in samples:
            times = [1e3 * s for s in samples[row.provider].all]
            row.p20_ms, row.p50_ms, row.p80_ms = (timing.percentile(times, p) for p in (20, 50, 80))
            row.samples = len(times)
            row.ns_per_element = row.p50_ms * 1e6 / case.elements
            if PLAIN in samples:
                row.speedup_vs_plain = timing.percentile(samples[PLAIN].all, 50) * 1e3 / row.p50_ms
    return rows


def _call(function: Callable[..., Tensor], mode: str, inputs: list[list[Tensor]]) -> Callable[[int], Any]:
    """What is timed: the operator without a graph, or the backward pass alone of graphs made beforehand."""
    if mode == "forward":

        def forward(i: int) -> Tensor:
            with torch.inference_mode():
                return function(*inputs[i % INPUTS][:-1])

        return forward
    graphs = [_graph(function, tensors) for tensors in inputs]

    def backward(i: int) -> tuple[Tensor, ...]:
        output, leaves, gradient = graphs[i % INPUTS]
        return torch.autograd.grad(output, leaves, gradient, retain_graph=True)

    return backward


def _graph(function: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    *leaves, gradient = (t.detach().requires_grad_() for t in tensors)
    return function(*leaves), leaves, gradient.detach()


def _result(function: Callable[..., Tensor], mode: str, tensors: list[Tensor]) -> list[Tensor]:
    if mode == "forward":
        with torch.inference_mode():
            return [function(*tensors[:-1])]
    output, leaves, gradient = _graph(function, tensors)
    return list(torch.autograd.grad(output, leaves, gradient))


def _error(result: list[Tensor], exact: list[Tensor]) -> float:
    """Largest relative L2 difference; NaN where the result holds one, which no comparison accepts."""
    errors = [((r.double() - e).norm() / e.norm().clamp_min(1e-30)).item() for r, e in zip(result, exact)]
    return max(errors) if all(e == e for e in errors) else float("nan")
