"""`linear`: a matrix product over rows of channels together with what precedes and follows it, for inference.

Shape suffixes: S sequences, L rows of a sequence, K inputs, N outputs, W taps.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ops import library

# As in csrc/linear: outputs of a panel, of the last one where half is enough; inputs that are multiplied together, as
# far as a norm of x reaches; and for int8 the least value that is not taken for zero.
PANEL, HALF_PANEL = 32, 16
CHUNK = 768
LEAST = 1e-30


def pack(weight_NWK: Tensor) -> Tensor:
    """Weights [N,W,K], float32 or bfloat16, in the order in which the C++ kernels read them, flat.

    Panels of `PANEL` outputs follow each other, the last one of `HALF_PANEL` where that is enough, zeros beyond N. A
    panel is [W,K,outputs]; in bfloat16 [W,K/2,outputs,2], a zero after an odd K.
    """
    return torch.cat(_panels(weight_NWK, 2 if weight_NWK.dtype == torch.bfloat16 else 1))


def pack_int8(weight_NWK: Tensor) -> Tensor:
    """Weights [N,W,K], rounded as `round_weights` does, as uint8 for the C++ kernels, flat.

    Panels as in `pack`: the bytes of their factors, float32, then q + 128 as [W,K/4,outputs,4].
    """
    q_NWK, factor_N = _integers(weight_NWK)
    panels = _panels((q_NWK + 128).to(torch.uint8), 4)
    factors = F.pad(factor_N, (0, -len(factor_N) % HALF_PANEL)).split(PANEL)
    return torch.cat([part for factor, panel in zip(factors, panels) for part in (factor.view(torch.uint8), panel)])


def round_weights(weight_NWK: Tensor) -> Tensor:
    """Weights [N,W,K] as int8 holds them, in float32:

    factor_n = max_wk |weight_nwk| / 127,   q_nwk = round(weight_nwk / factor_n),   result = factor_n q_nwk
    """
    q_NWK, factor_N = _integers(weight_NWK)
    return q_NWK * factor_N[:, None, None]


def round_rows(x: Tensor, in_norm: Tensor | None = None) -> Tensor:
    """in_norm(x) [S,L,K], float32, as the kernels take it where weights are int8: rounded like those, with a factor of
    each row and `CHUNK` of inputs. Chunks without a value of at least `LEAST` are zeros."""
    x = x if in_norm is None else _norm(x, in_norm)
    chunks = []
    for chunk in x.split(CHUNK, -1):
        largest = chunk.abs().amax(-1, keepdim=True)
        chunks.append((chunk * torch.where(largest < LEAST, 0.0, 127 / largest)).round() * (largest / 127))
    return torch.cat(chunks, -1)


def _integers(weight_NWK: Tensor) -> tuple[Tensor, Tensor]:
    weight_NWK = weight_NWK.float()
    factor_N = weight_NWK.abs().amax((1, 2)) / 127
    return (weight_NWK / factor_N.clamp_min(LEAST)[:, None, None]).round(), factor_N


def _panels(weight_NWK: Tensor, together: int) -> list[Tensor]:
    """[W,K/together,outputs,together] of each panel, flat."""
    outputs, _, inputs = weight_NWK.shape
    weight_NWK = F.pad(weight_NWK, (0, -inputs % together, 0, 0, 0, -outputs % HALF_PANEL))
    return [panel.unflatten(2, (-1, together)).permute(1, 2, 0, 3).flatten() for panel in weight_NWK.split(PANEL)]


def linear(
    x: Tensor,
    weight: Tensor,
    outputs: int,
    taps: int = 1,
    *,
    in_norm: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    out_norm: Tensor | None = None,
    relu: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    keep: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """One pass over x [S,L,K], each part only where it is given:

        y = keep (gate relu(out_norm(scale (sum_w weight_w in_norm(x_(l + w - W/2)) + bias))) + residual)

    Args:
        x: any strides; rows of adjacent channels are the fast case. Zero outside the sequence.
        weight: what `pack` made of [N,W,K], for the C++ kernels; or [N,W,K] itself, which PyTorch's operators multiply,
            in any dtype and on any device. In x's dtype. Or what `pack_int8` made, with x in float32: then in_norm(x)
            is rounded as by `round_rows`. Sums of integers are exact, those of chunks and taps float32.
        outputs, taps: N, and the odd W.
        in_norm, out_norm: [2,K] and [2,N], weight and bias of a layer norm (eps 1e-5); in_norm with one tap only.
        bias: [N]. scale: [S,L]; what x holds in rows whose scale is 0 does not matter, and the C++ kernels pass most of
            them over. gate: [S,N]. keep: [L]. residual: [S,L,N], in x's dtype.
        lengths: int64 [S], how many rows of each sequence matter, None for all. The C++ kernels end there, and leave
            the rows of y beyond as they were.

    Returns:
        y [S,L,N] in x's dtype, contiguous. Sums, norms and factors are float32 (float64 when x is float64), and do not
        depend on the number of threads. There is no gradient.

    Raises:
        RuntimeError: a wrong shape or dtype, or packed weights without the native library.
    """
    if weight.dim() == 3:
        return _composed(x, weight, in_norm, bias, scale, out_norm, relu, gate, residual, keep)
    if not torch.jit.is_tracing():
        library.require()
    if in_norm is not None and in_norm.shape[1] > CHUNK:
        x, in_norm = _norm(x.float(), in_norm).to(x.dtype), None
    return torch.ops.rdfa.linear(
        x, weight, outputs, taps, in_norm, bias, scale, out_norm, relu, gate, residual, keep, lengths
    )  # fmt: skip


def _composed(x, weight, in_norm, bias, scale, out_norm, relu, gate, residual, keep):
    wide = torch.promote_types(x.dtype, torch.float32)
    if in_norm is not None:
        x = _norm(x.to(wide), in_norm.to(wide)).to(weight.dtype)
    halo = weight.shape[1] // 2
    if halo == 0:
        y = F.linear(x, weight[:, 0])
    else:
        # In two dimensions, of height 1, because only then channels stay adjacent.
        x_SK1L, weight_NK1W = x.transpose(1, 2).unsqueeze(2), weight.transpose(1, 2).unsqueeze(2)
        y = F.conv2d(x_SK1L, weight_NK1W, padding=(0, halo)).squeeze(2).transpose(1, 2)
    y = y.to(wide)
    if bias is not None:
        y = y + bias
    if scale is not None:
        y = torch.where(scale.unsqueeze(-1) == 0, 0.0, y * scale.unsqueeze(-1))
    if out_norm is not None:
        y = _norm(y, out_norm.to(wide))
    if relu:
        y = F.relu(y)
    if gate is not None:
        y = y * gate.unsqueeze(1)
    if residual is not None:
        y = y + residual
    if keep is not None:
        y = y * keep.unsqueeze(-1)
    return y.to(x.dtype).contiguous()


def _norm(x, weight_and_bias):
    return F.layer_norm(x, x.shape[-1:], weight_and_bias[0], weight_and_bias[1], eps=1e-5)


def _fake(x, weight, outputs, taps, in_norm, bias, scale, out_norm, relu, gate, residual, keep, lengths):
    return x.new_empty(x.shape[0], x.shape[1], outputs)


if library.loaded():
    torch.library.register_fake("rdfa::linear", _fake)
    library.refuse_gradients("linear", "it is for inference; use torch.nn.functional.linear")
