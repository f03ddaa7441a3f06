"""The operators of an FA-Bi-S6 block between its matrix products, over rows of channels, for inference.

Each has a C++ kernel on the CPU, for float32 and bfloat16; elsewhere, and without the library, it is composed of the
operators for training. Channels are adjacent in memory throughout, and nothing is flipped, joined or copied. There are
no gradients.

Shape suffixes: S sequences, L steps, D channels, N states, K branches, R = 2 K S runs (sequence, then direction, then
branch), G bins.
"""

import torch
from torch import Tensor

from ops import library
from ops.causal_conv1d.op import causal_conv1d
from ops.selective_scan.op import selective_scan

# Widest convolution; narrower ones have zeros at the front.
TAPS = 4


def conv_rows(xz: Tensor, taps: Tensor, lengths: Tensor | None = None) -> Tensor:
    """All convolutions of a block, of both directions:

        u_run[l, d] = silu(bias_k[d] + sum_j taps_k[j, d] x_r[l - (TAPS - 1 - j), d])      forwards, r = 0
        u_run[l, d] = silu(bias_k[d] + sum_j taps_k[j, d] x_r[l + (TAPS - 1 - j), d])      backwards, r = 1

    Args:
        xz: [S,L,4D], what the input projection gives: x forwards, its gate, x backwards, its gate.
        taps: float32 [K,TAPS+1,D], the last row the bias; K from 1 to 3.
        lengths: as for `scan_rows`.

    Returns:
        u [R,L,D] in xz's dtype.
    """
    if library.runs_native(xz, taps):
        return torch.ops.rdfa.conv_rows(xz, taps, lengths)
    x_fwd, _, x_bwd, _ = xz.transpose(1, 2).chunk(4, dim=1)
    weights = [(t[:TAPS].t().to(xz.dtype), t[TAPS].to(xz.dtype)) for t in taps.unbind()]
    runs = [causal_conv1d(x, w, b, "silu", reverse=x is x_bwd) for x in (x_fwd, x_bwd) for w, b in weights]
    return torch.stack(runs, 1).flatten(0, 1).transpose(1, 2)


def scan_rows(
    u: Tensor, delta: Tensor, A: Tensor, BC: Tensor, D: Tensor, delta_bias: Tensor, xz: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """All scans of a block, `selective_scan` with softplus and gate, written as the output projection reads them.

    Args:
        u, delta: [R,L,D]. A: [D,N]. BC: [2S,L,2N], B and C of each direction, which its branches share. D, delta_bias:
            [D]. A, D and delta_bias in float32.
        xz: [S,L,4D], as for `conv_rows`; the gates are read from it.
        lengths: int64 [S], at least TAPS, or None. Sequence s is at most lengths[s] rows, and rows of xz alike from
            lengths[s] - TAPS on: so many the C++ kernels take of xz, u, delta and BC, end there as if the sequence did,
            and reckon the steps left out, which backward scans begin with, in closed form. Rows of y beyond hold
            anything.

    Returns:
        y [S,L,2KD]: forwards branch by branch, then backwards.
    """
    if library.runs_native(u, delta, BC, xz):
        return torch.ops.rdfa.scan_rows(u, delta, A, BC, D, delta_bias, xz, lengths)
    sequences = xz.shape[0]
    u_S2KDL, delta_S2KDL = (t.transpose(1, 2).unflatten(0, (sequences, 2, -1)) for t in (u, delta))
    B_S2NL, C_S2NL = BC.transpose(1, 2).unflatten(0, (sequences, 2)).chunk(2, dim=2)
    gates = xz.transpose(1, 2).chunk(4, dim=1)[1::2]
    outputs = [
        selective_scan(
            u_S2KDL[:, r, k], delta_S2KDL[:, r, k], A, B_S2NL[:, r], C_S2NL[:, r], D, gates[r], delta_bias,
            delta_softplus=True, reverse=r == 1,
        )
        for r in (0, 1)
        for k in range(u_S2KDL.shape[2])
    ]  # fmt: skip
    return torch.cat(outputs, 1).transpose(1, 2)


def average_rows(x: Tensor, bins: int) -> Tensor:
    """Averages of x [S,L,D] over time, y [S,G,D]: bin g is the mean from floor(g L / G) to ceil((g + 1) L / G)."""
    if library.runs_native(x):
        return torch.ops.rdfa.average_rows(x, bins)
    return torch.nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), bins).transpose(1, 2)


def _fake_conv(xz, taps, lengths):
    sequences, length, _ = xz.shape
    return xz.new_empty(2 * taps.shape[0] * sequences, length, taps.shape[2])


def _fake_scan(u, delta, A, BC, D, delta_bias, xz, lengths):
    sequences, length, _ = xz.shape
    return u.new_empty(sequences, length, u.shape[0] // sequences * u.shape[2])


if library.loaded():
    torch.library.register_fake("rdfa::conv_rows", _fake_conv)
    torch.library.register_fake("rdfa::scan_rows", _fake_scan)
    torch.library.register_fake("rdfa::average_rows", lambda x, bins: x.new_empty(x.shape[0], bins, x.shape[2]))
    for _name in ("conv_rows", "scan_rows", "average_rows"):
        library.refuse_gradients(_name, "it is for inference; use the operators it is composed of")
