"""The CUDA kernels of mamba-ssm and causal-conv1d as providers of the fused operators.

They know one branch and one direction of time, so a layer takes one call per branch, both directions side by side in
the batch, as the published block does. That block also copies: it flips the second direction's inputs and outputs,
repeats, concatenates, and adds up the gradients of what the branches share. All that is left out here: the calls are
timed on inputs that already lie as the kernels want them. So these rows flatter the rival.

Only the compiled modules are imported: the packages' top levels need more than this benchmark does.
Letters as in `gpu_cases`.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_providers import Missing, Stage


def rival(case: FusedCase, mode: str, inputs: dict[str, Tensor]) -> Stage:
    stage = _scan if case.states else _convolution
    return stage(case, mode, inputs)


def _note(case: FusedCase) -> str:
    calls = "1 call" if len(case.widths) == 1 else f"{len(case.widths)} calls, one per branch"
    return f"{calls}; flips, concatenations and sums over branches left out"


def _scan(case: FusedCase, mode: str, inputs: dict[str, Tensor]) -> Stage:
    module = _extension("selective_scan_cuda", "mamba-ssm")
    K = len(case.widths)
    us, deltas = (_branches(inputs[name], K) for name in ("u", "delta"))
    (z,) = _branches(inputs["z"], 1)
    # One group of channels shares B and C.
    B, C = (_branches(inputs[name], 1)[0][:, None] for name in ("B", "C"))
    arguments = us, deltas, inputs["A"], B, C, inputs["D"], z, inputs["delta_bias"]

    def forward(arguments):
        us, deltas, A, B, C, D, z, delta_bias = arguments
        return [module.fwd(u, delta, A, B, C, D, z, delta_bias, True) for u, delta in zip(us, deltas)]

    if mode == "forward":
        # Each call gives the output before the gate, the states at chunk borders, and the gated output.
        return Stage(arguments, forward, lambda results: {"y": _output([r[2] for r in results])}, _note(case))

    kept = [(out, states) for out, states, _ in forward(arguments)]
    grads = _branches(torch.stack(inputs["grad_y"].chunk(2, dim=1)), K)

    def backward(arguments):
        (us, deltas, A, B, C, D, z, delta_bias), grads, kept = arguments
        return [
            module.bwd(u, delta, A, B, C, D, z, delta_bias, grad, states, out, None, True, False)
            for u, delta, grad, (out, states) in zip(us, deltas, grads, kept)
        ]

    def named(results):
        du, ddelta, dA, dB, dC, dD, ddelta_bias, dz = ([r[i] for r in results] for i in range(8))
        return {
            "du": _fused(du),
            "ddelta": _fused(ddelta),
            "dA": _total(dA),
            "dB": _fused([_total(dB)[:, 0]]),
            "dC": _fused([_total(dC)[:, 0]]),
            "dD": _total(dD),
            "dz": _fused([_total(dz)]),
            "ddelta_bias": _total(ddelta_bias),
        }

    return Stage((arguments, grads, kept), backward, named, _note(case))


def _convolution(case: FusedCase, mode: str, inputs: dict[str, Tensor]) -> Stage:
    module = _extension("causal_conv1d_cuda", "causal-conv1d")
    (x,) = _branches(inputs["x"], 1)
    weights, biases = ([inputs[f"{kind}{w}"] for w in case.widths] for kind in ("weight", "bias"))
    if mode == "forward":

        def forward(arguments):
            x, weights, biases = arguments
            outputs = [torch.empty_like(x) for _ in weights]
            for weight, bias, output in zip(weights, biases, outputs):
                module.causal_conv1d_fwd(x, weight, bias, None, None, output, None, True)
            return outputs

        return Stage((x, weights, biases), forward, lambda outputs: {"u": _fused(outputs)}, _note(case))

    def backward(arguments):
        x, weights, biases, grads = arguments
        results = []
        for weight, bias, grad in zip(weights, biases, grads):
            dx = torch.empty_like(x)
            dweight, dbias = (torch.zeros_like(t, dtype=torch.float32) for t in (weight, bias))
            module.causal_conv1d_bwd(x, weight, bias, grad, None, None, None, dx, dweight, dbias, None, True)
            results.append((dx, dweight.to(weight.dtype), dbias.to(bias.dtype)))
        return results

    def named(results):
        dx, dweights, dbiases = zip(*results)
        by_width = {f"dweight{w}": g for w, g in zip(case.widths, dweights)}
        by_width |= {f"dbias{w}": g for w, g in zip(case.widths, dbiases)}
        return {"dx": _fused([_total(dx)])} | by_width

    arguments = x, weights, biases, _branches(inputs["grad_u"], len(case.widths))
    return Stage(arguments, backward, named, _note(case))


def _extension(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = str(error).splitlines()[0] if str(error) else name
        raise Missing(f"{package}: {reason} (install the extra 'reference')") from None


def _branches(t: Tensor, K: int) -> list[Tensor]:
    """[2,S,K*X,L] -> K tensors [2S,X,L], the second direction in its own order of time."""
    in_order = torch.cat((t[0], t[1].flip(-1)))
    return [part.contiguous() for part in in_order.chunk(K, dim=1)]


def _fused(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The inverse of `_branches`."""
    forwards, backwards = torch.cat(tuple(parts), dim=1).chunk(2)
    return torch.stack((forwards, backwards.flip(-1)))


def _output(parts: list[Tensor]) -> Tensor:
    """K tensors [2S,D,L] -> [S,2*K*D,L]."""
    return torch.cat(tuple(_fused(parts)), dim=1)


def _total(parts: Any) -> Tensor:
    """Sum over branches, in float64: the rounding of this sum is none of the rival's."""
    return torch.stack([p.double() for p in parts]).sum(0)
