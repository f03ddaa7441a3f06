"""The operators alone on a CPU, over every shape that the detector gives them: native kernel against the plain
reference.

Each provider's result (forward: the output; backward: every gradient) is first compared with the plain reference in
float64. A kernel whose error exceeds twice that of the plain reference in the same dtype shows no speed.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rdfa.bench import timing
from rdfa.bench.kernel_cases import NATIVE, Case
from rdfa.bench.kernel_rows import MODES, PLAIN, KernelRow, judge, put_speedups, relative_l2, worst
from rdfa.runtime.torch_threads import pinned

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INPUTS = 3
# The plain reference keeps some five tensors of B*D*N*L elements for its backward: more than this is left out.
PLAIN_ELEMENTS = 2**26
# The comparison in float64 takes as many videos of the batch as fit in this number of elements, and at least one.
CHECKED_ELEMENTS = 2**25


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
    exact = _result(case, functions[PLAIN], mode, [t.double() for t in example])
    plain_errors = relative_l2(_result(case, functions[PLAIN], mode, example), exact)
    inputs = [case.tensors(case.batch, DTYPES[dtype], seed) for seed in range(INPUTS)]
    rows, calls = [], {}
    for provider, function in functions.items():
        verdict, error = "valid", None
        if provider == NATIVE and not native_available:
            verdict = "skipped: the native library is not built (python -m ops.build)"
        elif provider == PLAIN and mode == "backward" and case.elements > PLAIN_ELEMENTS:
            verdict = f"skipped: the plain backward would keep {case.elements / 2**28 * 5:.0f} GB"
        else:
            errors = relative_l2(_result(case, function, mode, example), exact)
            verdict, error = judge(errors, plain_errors), worst(errors)
        rows.append(
            KernelRow(
                case.kernel, case.layer, mode, provider, case.batch, case.channels, case.states or None,
                case.width or None, case.length, dtype, "cpu", threads, verdict,
                relative_l2=error, plain_relative_l2=worst(plain_errors),
            )
        )  # fmt: skip
        if verdict == "valid":
            calls[provider] = _call(function, mode, inputs)
    samples = timing.measure(calls, seconds, clock) if calls else {}
    for row in rows:
        if row.provider in samples:
            row.put_times(samples[row.provider], case.elements)
    put_speedups(rows, PLAIN, "speedup_vs_plain")
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


def _result(case: Case, function: Callable[..., Tensor], mode: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    if mode == "forward":
        with torch.inference_mode():
            return {"y": function(*tensors[:-1])}
    output, leaves, gradient = _graph(function, tensors)
    gradients = torch.autograd.grad(output, leaves, gradient)
    return {f"d{name}": g for name, g in zip(case.inputs, gradients)}
