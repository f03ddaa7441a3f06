"""Inputs for the tests of the selective scan, and a run of the operator or its reference on them."""

import torch

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def contiguous(x):
    return x.contiguous()


def channels_last(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def slice_of_wider(x):
    """Channels in the middle of rows that hold more, as a chunk of a projection has them."""
    wide = torch.full((x.shape[0], x.shape[2], x.shape[1] + 9), float("nan"), dtype=x.dtype)
    wide[:, :, 4 : 4 + x.shape[1]] = x.transpose(1, 2)
    return wide[:, :, 4 : 4 + x.shape[1]].transpose(1, 2)


def no_unit_stride(x):
    wide = torch.full((*x.shape[:2], 3 * x.shape[2]), float("nan"), dtype=x.dtype)
    wide[:, :, ::3] = x
    return wide[:, :, ::3]


def repeated(x):
    """The same channel for all, with stride 0."""
    return x[:, :1].expand(-1, x.shape[1], -1)


LAYOUTS = [contiguous, channels_last, slice_of_wider, no_unit_stride, repeated]


def make(shape, kind="BNL", groups=1, dtype=torch.float32, layout=contiguous, seed=0, without=(), delta_shift=-1.0):
    """Tensor arguments of a scan of `shape` (B, D, N, L) as a dictionary; `kind` is the layout of B and C."""
    batch, channels, states, length = shape
    g = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=g)

    def projection():
        if kind == "DN":
            return random(channels, states)
        if kind == "BNL":
            return random(batch, states, length)
        if kind == "BLN":  # N adjacent in memory
            return random(batch, length, states).transpose(1, 2)
        return random(batch, groups, states, length)

    tensors = {
        "u": layout(random(batch, channels, length).to(dtype)),
        "delta": layout((random(batch, channels, length) + delta_shift).to(dtype)),
        "A": -torch.exp(random(channels, states)),
        "B": projection().to(dtype),
        "C": projection().to(dtype),
        "D": random(channels),
        "z": layout(random(batch, channels, length).to(dtype)),
        "delta_bias": 0.5 * random(channels),
    }
    return tensors | {name: None for name in without}


def output_gradients(shape, dtype=torch.float32, seed=1):
    batch, channels, states, length = shape
    g = torch.Generator().manual_seed(seed)
    dy = torch.randn(batch, channels, length, generator=g).to(dtype)
    return dy, torch.randn(batch, channels, states, generator=g)


def run(function, tensors, dy=None, dstate=None, softplus=True, reverse=False):
    """y, the last state and, given their gradients (or one of them), every gradient; as a dictionary by name."""
    leaves = {k: None if t is None else t.detach().requires_grad_() for k, t in tensors.items()}
    y, last_state = function(*leaves.values(), softplus, return_last_state=True, reverse=reverse)
    results = {"y": y.detach(), "last_state": last_state.detach()}
    outputs = [(o, g.to(o.dtype)) for o, g in ((y, dy), (last_state, dstate)) if g is not None and o.requires_grad]
    if not outputs:
        return results
    given = {k: t for k, t in leaves.items() if t is not None}
    gradients = torch.autograd.grad(
        [o for o, _ in outputs], list(given.values()), [g for _, g in outputs], materialize_grads=True
    )
    return results | {f"d{k}": g for k, g in zip(given, gradients)}


def make_bidirectional(sequences, branches, channels, states, length, dtype=torch.float32, device="cpu"):
    """Arguments of `bidirectional_scan` by name, as the products of an FA-Bi-S6 block lay them out, and a gradient."""
    g = torch.Generator(device).manual_seed(sequences + branches + length)

    def random(*size):
        return torch.randn(*size, generator=g, device=device)

    projected = random(2, sequences, states + 3 + states, length).to(dtype)
    gates = random(sequences, 4 * channels, length).to(dtype).unflatten(1, (2, 2, channels))
    tensors = {
        "u": random(2, sequences, branches * channels, length).to(dtype),
        "delta": (random(2, sequences, branches * channels, length) - 1).to(dtype),
        "A": -torch.exp(random(channels, states)),
        "B": projected[:, :, :states],
        "C": projected[:, :, states + 3 :],
        "D": random(channels),
        "z": gates[:, :, 1].transpose(0, 1),
        "delta_bias": 0.5 * random(channels),
    }
    return tensors, random(sequences, 2 * branches * channels, length).to(dtype)


def run_bidirectional(function, tensors, grad_y):
    """y and every gradient by name."""
    leaves = {k: t.detach().requires_grad_() for k, t in tensors.items()}
    y = function(*leaves.values())
    gradients = torch.autograd.grad(y, list(leaves.values()), grad_y.to(y.dtype))
    return {"y": y.detach()} | dict(zip(leaves, gradients))


def also_exact(tensors):
    """The tensors, and the same in float64."""
    return tensors, {k: t.double() for k, t in tensors.items()}
