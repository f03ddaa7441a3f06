"""Inputs for the tests of the convolutions, and a run of an operator or its reference on them."""

import torch

from ops.causal_conv1d.reference import causal_conv1d_reference


def make(shape, width, with_bias, dtype, seed=0, device="cpu"):
    """x, weight and, if wanted, bias for x of `shape` (B, D, L), and a gradient of the result."""
    g = torch.Generator(device).manual_seed(seed)
    B, D, L = shape
    x, dy = (torch.randn(B, D, L, generator=g, device=device).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(*size, generator=g, device=device).to(dtype) for size in ((D, width), (D,)))
    return ([x, weight, bias] if with_bias else [x, weight]), dy


def run(function, tensors, dy, activation, reverse):
    """Output and, with gradients enabled, those of x, weight and bias, as a dictionary; `function` is the operator or
    its reference."""
    names = ["x", "weight", "bias"][: len(tensors)]
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, activation=activation, reverse=reverse)
    if not torch.is_grad_enabled():
        return {"y": y}
    gradients = torch.autograd.grad(y, leaves, dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{name}": g for name, g in zip(names, gradients)}


def make_bidirectional(shape, widths, dtype, seed=0, device="cpu"):
    """x as a slice of a projection [S, 4D, L], K weights and K biases for x of `shape` (S, D, L), and a gradient."""
    g = torch.Generator(device).manual_seed(seed)
    S, D, L = shape

    def random(*size):
        return torch.randn(*size, generator=g, device=device).to(dtype)

    x = random(S, 4 * D, L).unflatten(1, (2, 2, D))[:, :, 0].transpose(0, 1)
    return x, [random(D, w) for w in widths], [random(D) for _ in widths], random(2, S, len(widths) * D, L)


def run_bidirectional(function, x, weights, biases, du):
    """u and the gradients of x, weights and biases, as a dictionary."""
    x, *filters = (t.detach().requires_grad_() for t in (x, *weights, *biases))
    K = len(weights)
    u = function(x, filters[:K], filters[K:])
    names = ["dx", *(f"dweight{k}" for k in range(K)), *(f"dbias{k}" for k in range(K))]
    return {"u": u.detach()} | dict(zip(names, torch.autograd.grad(u, [x, *filters], du.to(u.dtype))))


def bidirectional_reference(x, weights, biases):
    """`bidirectional_conv1d` from the reference of a single convolution."""
    directions = (
        torch.cat([causal_conv1d_reference(x[r], w, b, "silu", reverse=r == 1) for w, b in zip(weights, biases)], 1)
        for r in range(2)
    )
    return torch.stack(list(directions))


def doubled(tensors):
    return [t.double() for t in tensors]
