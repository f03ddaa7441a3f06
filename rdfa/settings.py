"""Settings: frozen dataclasses whose fields carry their type and range.

Every room of the package keeps its own settings beside its code (``rdfa/modeling/settings.py``, ...). They know nothing
of gin or YAML; ``rdfa/config.py`` fills them from gin files and ``rdfa/convert.py`` from published YAML files, and both
get the same checks and the same messages because the checks live here.
"""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

from rdfa.errors import UsageError

MOST_NAMES = 30  # in a message: all groups of the configuration, not all videos of a data set


def setting(default: Any, *, ge=None, gt=None, le=None, lt=None, choices: Iterable | None = None, doc: str = ""):
    """Declare a field of a `Settings` class with its default and the range of values it accepts.

    `ge`, `gt`, `le`, `lt` bound numbers (and every number inside a tuple); `choices` lists the only accepted values;
    None passes where the annotation allows it.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {"bounds": {k: v for k, v in bounds.items() if v is not None}, "doc": doc}
    if choices is not None:
        metadata["choices"] = tuple(choices)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all settings: checks and normalises every field when an instance is made.

    Lists become tuples, integers become floats where a float is declared; anything else that does not fit the
    annotation, lies outside the declared range or is not finite raises `UsageError` naming the setting and its value.
    """

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            name = f"{group_name(type(self))}.{field.name}"
            value = _coerce(name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            _check_range(name, value, field.metadata)


def group_name(cls: type) -> str:
    """The name of a settings class in configuration files: the class name without its suffix ``Settings``."""
    return cls.__name__.removesuffix("Settings")


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name closest to `name` as a question, or the valid names, as many as fit on a line."""
    valid = sorted(valid)
    if not valid:
        return "there is none"
    match = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if match:
        return f"did you mean {match[0]!r}?"
    more = f" and {len(valid) - MOST_NAMES} more" if len(valid) > MOST_NAMES else ""
    return f"valid: {', '.join(valid[:MOST_NAMES])}{more}"


def _describe(annotation) -> str:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_describe(a) for a in typing.get_args(annotation))
    if annotation is type(None):
        return "None"
    if typing.get_origin(annotation) is tuple:
        args = typing.get_args(annotation)
        if args[-1] is Ellipsis:
            return f"a list of {_describe(args[0])}"
        return "(" + ", ".join(_describe(a) for a in args) + ")"
    return annotation.__name__


def _coerce(name: str, value: Any, annotation) -> Any:
    """`value` as the annotated type; raises UsageError where that would change its meaning."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        for option in typing.get_args(annotation):
            try:
                return _coerce(name, value, option)
            except UsageError:
                continue
    elif origin is tuple and isinstance(value, (list, tuple)):
        args = typing.get_args(annotation)
        if args[-1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) == len(value):
            return tuple(_coerce(f"{name}[{i}]", v, a) for i, (v, a) in enumerate(zip(value, args)))
    elif annotation is type(None) and value is None:
        return None
    elif annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # neither infinite nor NaN
            return float(value)
    elif annotation is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif annotation in (bool, str) and isinstance(value, annotation):
        return value
    raise UsageError(f"{name} = {value!r}: expected {_describe(annotation)}")


_COMPARE = {
    "ge": (">=", lambda v, bound: v >= bound),
    "gt": (">", lambda v, bound: v > bound),
    "le": ("<=", lambda v, bound: v <= bound),
    "lt": ("<", lambda v, bound: v < bound),
}


def _check_range(name: str, value: Any, metadata) -> None:
    if isinstance(value, tuple):
        for i, v in enumerate(value):
            _check_range(f"{name}[{i}]", v, metadata)
        return
    if value is None:
        return
    choices = metadata.get("choices")
    if choices is not None and value not in choices:
        raise UsageError(f"{name} = {value!r} is unknown: {nearest(str(value), map(str, choices))}")
    for key, bound in metadata.get("bounds", {}).items():
        symbol, holds = _COMPARE[key]
        if not holds(value, bound):
            raise UsageError(f"{name} = {value!r} is out of range: it must be {symbol} {bound}")
