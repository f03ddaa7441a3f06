"""The formulas of `ops.rows.gpu` in PyTorch's operators, with its signatures."""

from torch.nn import functional as F


def finish(
    x, *, taps=1, bias=None, mask=None, norm=None, factor=None, relu=False, gate=None, residual=None, next_norm=None,
    out=None,
):  # fmt: skip
    if taps > 1:
        x = F.pad(x, (0, 0, 0, 0, taps // 2, taps // 2))
        x = sum(x[:, w : x.shape[1] - taps + 1 + w, w] for w in range(taps))
    x = x if bias is None else x + bias
    x = x if mask is None else x * mask[..., None]
    x = x if norm is None else F.layer_norm(x, x.shape[-1:], *norm)
    x = x if factor is None else x * factor[:, None]
    x = x.relu() if relu else x
    x = x if gate is None else x * gate.sigmoid()[:, None]
    x = x if residual is None else x + residual
    x = x if out is None else out.copy_(x)
    return x if next_norm is None else (x, F.layer_norm(x, x.shape[-1:], *next_norm))


def halve(x, mask, next_norm=None):
    y = F.max_pool1d(x.transpose(1, 2), 3, 2, 1).transpose(1, 2) * mask[:, ::2, None]
    return y if next_norm is None else (y, F.layer_norm(y, y.shape[-1:], *next_norm))


def average(x, bins):
    return F.adaptive_avg_pool1d(x.transpose(1, 2), bins).transpose(1, 2)
