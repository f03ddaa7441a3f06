"""What the arguments of a convolution must be, however it is called."""

import torch


def check(x, weight, bias):
    """Raise TypeError or ValueError unless x [B,D,L], weight [D,W] and bias [D] (or None) fit together."""
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if name == "bias" and tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"{name} is {kind}: expected a real floating-point tensor")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}: move them to one device")
    if x.dim() != 3:
        raise ValueError(f"x has shape {list(x.shape)}: expected [B, D, L]")
    if weight.dim() != 2 or weight.shape[0] != x.shape[1] or not 2 <= weight.shape[1] <= 4:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected [D, W] = [{x.shape[1]}, 2..4]")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != x.shape[1]):
        raise ValueError(f"bias has shape {list(bias.shape)}: expected [D] = [{x.shape[1]}]")
