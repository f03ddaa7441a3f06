"""Who computes the fused operators on a GPU: our kernels and the plain reference. (`gpu_rivals` has the others.)

A provider is a function of a case, a mode and the case's inputs that gives a `Stage`: arguments laid out as this
provider wants them, and the call that is timed. Letters as in `gpu_cases`.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ops import library
from ops.selective_scan.reference import selective_scan_reference
from rdfa.bench import gpu_solutions
from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.kernel_cases import SCAN_INPUTS

# The plain scan launches some kernels per step, and keeps some five tensors of all elements for its backward.
PLAIN_LENGTH = 2304
PLAIN_ELEMENTS = 2**27

OURS_NOTE = "one call for all branches and both directions"
PLAIN_NOTE = "eager, the launches included"


class Missing(Exception):
    """Why a provider does not run here."""


def verdict_of(error: Exception) -> str:
    """The verdict on a provider that raised `error`."""
    if isinstance(error, Missing):
        return f"skipped: {error}"
    if isinstance(error, torch.OutOfMemoryError):
        return "skipped: the device has too little memory"
    return f"invalid: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@dataclass(frozen=True)
class Stage:
    """One mode of a provider, ready to run.

    Attributes:
        arguments: a tensor, or a tuple or list of such values.
        call: what is timed, of the arguments.
        named: what `call` gave -> results by name, laid out as the fused operators'.
        eager: runs call by call, and not from a graph.
    """

    arguments: Any
    call: Callable[[Any], Any]
    named: Callable[[Any], dict[str, Tensor]]
    note: str
    eager: bool = False


Provider = Callable[[FusedCase, str, dict[str, Tensor]], Stage]


def ours(case: FusedCase, mode: str, inputs: dict[str, Tensor]) -> Stage:
    """The backward is timed as the operator that autograd calls, on what the training forward kept."""
    function, train, backward = operators(case.kernel)
    if case.states:
        arguments = tuple(inputs[name] for name in SCAN_INPUTS)
    else:
        arguments = inputs["x"], *([inputs[f"{kind}{w}"] for w in case.widths] for kind in ("weight", "bias"))
    if mode == "forward":

        def forward(arguments):
            with torch.no_grad():
                return function(*arguments)

        return Stage(arguments, forward, lambda output: {case.output: output}, OURS_NOTE)
    kept = train(*arguments)[1:] if train else ()

    def named(gradients):
        return {f"d{name}": g for name, g in zip(inputs, flatten(gradients))}

    arguments = (inputs[f"grad_{case.output}"], *arguments, *kept)
    return Stage(arguments, lambda arguments: backward(*arguments), named, OURS_NOTE)


def operators(kernel: str) -> tuple[Callable, Callable | None, Callable]:
    """The fused operator, its training forward if it has one of its own, and its backward.

    Not the functions around them, which may compute the same without the kernels.
    """
    name = {"selective_scan": "bidirectional_scan", "causal_conv1d": "bidirectional_conv1d"}[kernel]
    if not library.loaded():
        raise Missing("the native library is not built (python -m ops.build)")
    try:
        importlib.import_module("triton")
    except ImportError:
        raise Missing("Triton is not installed (install the extra 'gpu')") from None
    importlib.import_module(f"ops.{kernel}.bidirectional")
    rdfa = torch.ops.rdfa
    return getattr(rdfa, name), getattr(rdfa, f"{name}_train", None), getattr(rdfa, f"{name}_backward")


def plain(case: FusedCase, mode: str, inputs: dict[str, Tensor]) -> Stage:
    if case.states and (case.batch > 1 or case.length > PLAIN_LENGTH or case.elements > PLAIN_ELEMENTS):
        raise Missing(f"the plain scan is slow: measured at batch 1 and up to {PLAIN_LENGTH} steps")
    function = _plain_scan if case.states else _plain_convolution
    if mode == "forward":

        def forward(inputs):
            with torch.no_grad():
                return function(case, *inputs)

        arguments = tuple(inputs.values())[:-1]
        return Stage(arguments, forward, lambda output: {case.output: output}, PLAIN_NOTE, eager=True)
    *leaves, gradient = (t.detach().requires_grad_() for t in inputs.values())
    output = function(case, *leaves)

    def backward(gradient):
        return torch.autograd.grad(output, leaves, gradient, retain_graph=True)

    def named(gradients):
        return {f"d{name}": g for name, g in zip(inputs, gradients)}

    return Stage(gradient.detach(), backward, named, PLAIN_NOTE, eager=True)


def _plain_convolution(case: FusedCase, *arguments: Tensor) -> Tensor:
    names = ("x", *(f"{kind}{w}" for kind in ("weight", "bias") for w in case.widths))
    return gpu_solutions.plain_convolution(case, dict(zip(names, arguments)))


def _plain_scan(case: FusedCase, u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    K = len(case.widths)
    A, D, delta_bias, z = A.repeat(K, 1), D.repeat(K), delta_bias.repeat(K), z.repeat(1, 1, K, 1)
    return torch.cat(
        [
            selective_scan_reference(u[i], delta[i], A, B[i], C[i], D, z[i], delta_bias, True, reverse=i == 1)
            for i in range(2)
        ],
        dim=1,
    )


def flatten(value: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from flatten(part)
