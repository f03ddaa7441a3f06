"""Parts of a detector in the place of others, for files that need another form of them."""

from collections.abc import Callable, Mapping

from torch import nn


def replace_modules(module: nn.Module, forms: Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]]) -> None:
    """Put `forms[type(part)](part)` in the place of every part of `module` of such a type."""
    for name, child in module.named_children():
        if type(child) in forms:
            setattr(module, name, forms[type(child)](child))
        else:
            replace_modules(child, forms)
