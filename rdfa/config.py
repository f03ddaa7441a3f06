"""Where gin meets code: which settings exist, how gin text becomes a `Config`, and a `Config` gin text again.

A configuration is data. gin-config's own parser reads the syntax (bindings, macros, includes, line continuation), but
nothing is imported and nothing is called, so a configuration file from a stranger is safe to read: ``import``
statements, ``@references`` and scopes are refused. `GROUPS` is everything that can be bound; an unknown name, a wrong
type or a value out of range raises `UsageError` with the nearest valid name.

    config = load(["gin/thumos14.gin"], ["Loader.batch_size = 4"])
"""

import argparse
import dataclasses
import difflib
import os
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from rdfa.data.settings import DatasetSettings, LoaderSettings
from rdfa.errors import UsageError
from rdfa.inference.settings import PostProcessingSettings
from rdfa.modeling.settings import ModelSettings
from rdfa.settings import Settings, group_name, nearest
from rdfa.training.settings import EngineSettings

REPOSITORY = Path(__file__).resolve().parent.parent
SECRETS = ("Wandb.key",)
REQUIRED = "gin.REQUIRED"  # gin's own macro for a value that must be given


@dataclass(frozen=True)
class Config:
    """Everything that defines a run, checked part against part. Immutable; passed explicitly, never global."""

    model: ModelSettings = ModelSettings()
    dataset: DatasetSettings = DatasetSettings()
    loader: LoaderSettings = LoaderSettings()
    engine: EngineSettings = EngineSettings()
    post: PostProcessingSettings = PostProcessingSettings()

    def __post_init__(self):
        num_classes, agnostic = self.model.cls_head.num_classes, self.dataset.class_agnostic
        if agnostic and num_classes != 1:
            raise UsageError(
                f"PtTransformerClsHead.num_classes = {num_classes}: it must be 1 with Dataset.class_agnostic = True"
            )
        alike = (
            (
                ("Dataset.num_classes", 1 if agnostic else self.dataset.num_classes),
                ("PtTransformerClsHead.num_classes", num_classes),
            ),
            (
                ("Dataset.max_seq_len", self.dataset.max_seq_len),
                ("PointGenerator.max_seq_len", self.model.generator.max_seq_len),
            ),
        )
        for (name, value), (other, wanted) in alike:
            if value != wanted:
                raise UsageError(f"{name} = {value} and {other} = {wanted} must be the same: set both")
        if self.dataset.max_seq_len % self.padding_multiple:
            raise UsageError(
                f"Dataset.max_seq_len = {self.dataset.max_seq_len} is not a multiple of {self.padding_multiple}: of "
                f"{self.model.coarsest_stride}, the stride of the coarsest of {self.model.fpn_levels} pyramid levels, "
                f"and of Loader.max_div_factor = {self.loader.max_div_factor}"
            )

    @property
    def padding_multiple(self) -> int:
        """What every padded length is a multiple of."""
        return self.loader.padding_multiple(self.model.coarsest_stride)


class _Slot(NamedTuple):
    """Where a settings group sits in a `Config`."""

    path: tuple[str, ...]
    cls: type[Settings]


def _slots() -> dict[str, _Slot]:
    slots = {}
    for part in dataclasses.fields(Config):
        members = [((part.name,), part.type)]
        if not issubclass(part.type, Settings):
            members = [((part.name, field.name), field.type) for field in dataclasses.fields(part.type)]
        slots |= {group_name(cls): _Slot(path, cls) for path, cls in members}
    return slots


# Group name as written in gin -> its place in Config: the complete list of what is configurable.
GROUPS = _slots()


class _Macro(NamedTuple):
    name: str


class _DataOnly(config_parser.ParserDelegate):
    """Lets gin's parser build literals and macros, and nothing that could run code."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        raise UsageError(
            f"@{scoped_configurable_name}: references to Python objects are not accepted in a configuration; "
            "write a literal value or a %MACRO"
        )

    def macro(self, macro_name):
        return _Macro(macro_name)


class _Binding(NamedTuple):
    value: Any
    where: str


def load(gin_files: Iterable[str | os.PathLike] = (), gin_params: Iterable[str] = ()) -> Config:
    """The configuration that `gin_files`, in order, then `gin_params` (each 'Group.name = value') describe.

    Later bindings win. Whatever is not bound keeps the default of its settings class, which is the published one.

    Raises:
        UsageError: a file that is missing or malformed, an unknown name, a wrong type, a value out of range, or
            settings that contradict each other.
    """
    statements = [s for file in gin_files for s in _read_file(Path(file), ())]
    return _interpret(statements + _parse_params(gin_params))


def from_text(text: str, gin_params: Iterable[str] = ()) -> Config:
    """The configuration in gin `text`, as written by `to_gin`, with `gin_params` applied after it."""
    return _interpret(_parse(text, "config.gin", REPOSITORY, ()) + _parse_params(gin_params))


def _parse_params(gin_params: Iterable[str]) -> list[tuple[Any, str]]:
    return [s for text in gin_params for s in _parse(text, f"--gin_param {text!r}", REPOSITORY, ())]


def _interpret(statements: list[tuple[Any, str]]) -> Config:
    macros: dict[str, _Binding] = {}
    bindings: dict[str, dict[str, _Binding]] = {}
    for statement, where in statements:
        if statement.scope:
            raise UsageError(f"{where}: scope {statement.scope!r} is not accepted; write {statement.selector} alone")
        if not statement.arg_name:
            macros[statement.selector] = _Binding(statement.value, where)
        else:
            _check_name(statement.selector, statement.arg_name, where)
            bindings.setdefault(statement.selector, {})[statement.arg_name] = _Binding(statement.value, where)
    _refuse_unused(macros, statements)
    return _build(bindings, macros)


def to_gin(config: Config) -> str:
    """Complete gin text of `config`, every setting written out; secrets are left out. `from_text` gives it back."""
    lines = ["# Operative configuration: every setting, with the value it had."]
    for name, slot in GROUPS.items():
        lines.append("")
        group = _get(config, slot.path)
        for field in dataclasses.fields(group):
            if f"{name}.{field.name}" not in SECRETS:
                lines.append(f"{name}.{field.name} = {getattr(group, field.name)!r}")
    return "\n".join(lines) + "\n"


def differences(old: Config, new: Config) -> list[str]:
    """'Group.name: old -> new' for every setting that differs."""
    return [
        f"{name}.{field.name}: {getattr(a, field.name)!r} -> {getattr(b, field.name)!r}"
        for name, slot in GROUPS.items()
        for a, b in [(_get(old, slot.path), _get(new, slot.path))]
        for field in dataclasses.fields(a)
        if getattr(a, field.name) != getattr(b, field.name)
    ]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --gin_file and --gin_param, the flags all scripts share."""
    parser.add_argument("--gin_file", action="append", default=[], metavar="F", help="gin file; repeatable, later wins")
    parser.add_argument(
        "--gin_param",
        action="append",
        default=[],
        metavar="'Group.name = value'",
        help="one binding, applied after the files; repeatable",
    )


def from_args(args: argparse.Namespace) -> Config:
    """The configuration that the flags of `add_flags` describe."""
    return load(args.gin_file, args.gin_param)


def _refuse_unused(macros: dict[str, _Binding], statements: list[tuple[Any, str]]) -> None:
    """A name without a dot defines a macro in gin; one that nothing uses is a misspelt setting."""
    used = {name for statement, _ in statements for name in _macros_in(statement.value)} - {REQUIRED}
    for name in macros.keys() - used:
        raise UsageError(
            f"{macros[name].where}: {name!r} is not a setting (Group.name = value), and no binding uses it as %{name}: "
            + (_with_group(name) or nearest(name, [*GROUPS, *used]))
        )


def _with_group(name: str) -> str:
    """The settings that `name`, written without its group, is likely to mean, as a question; '' if there is none."""
    groups: dict[str, list[str]] = {}
    for group, slot in GROUPS.items():
        for field in dataclasses.fields(slot.cls):
            groups.setdefault(field.name, []).append(group)
    match = difflib.get_close_matches(name, groups, n=1, cutoff=0.8)
    return f"did you mean {' or '.join(f'{group}.{match[0]}' for group in groups[match[0]])}?" if match else ""


def _macros_in(value: Any) -> Iterator[str]:
    if isinstance(value, _Macro):
        yield value.name
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _macros_in(element)


def _check_name(group: str, field: str, where: str) -> None:
    if group not in GROUPS:
        raise UsageError(f"{where}: unknown setting {group}.{field}: {nearest(group, GROUPS)}")
    valid = [f.name for f in dataclasses.fields(GROUPS[group].cls)]
    if field not in valid:
        raise UsageError(f"{where}: {group} has no setting {field!r}: {nearest(field, valid)}")


def _read_file(path: Path, including: tuple[Path, ...]) -> list[tuple[Any, str]]:
    path = path.resolve()
    if path in including:
        raise UsageError(f"{path.name} includes itself")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UsageError(f"cannot read gin file {path}: {reason}; the ones to start from are in gin/") from error
    return _parse(text, path.name, path.parent, (*including, path))


def _parse(text: str, source: str, folder: Path, including: tuple[Path, ...]) -> list[tuple[Any, str]]:
    """Bindings in `text`, included files in place; each with 'source:line' for messages."""
    bindings = []
    for statement in _statements(text, source):
        where = source if source.startswith("--") else f"{source}:{statement.location.line_num}"
        if isinstance(statement, config_parser.BindingStatement):
            bindings.append((statement, where))
        elif isinstance(statement, config_parser.IncludeStatement):
            bindings += _read_file(_find_include(statement.filename, folder, where), including)
        elif isinstance(statement, config_parser.ImportStatement):
            raise UsageError(f"{where}: {statement.format()!r}: a configuration cannot import code")
    return bindings


def _statements(text: str, source: str) -> Iterator[Any]:
    try:
        yield from config_parser.ConfigParser(text, _DataOnly())
    except UsageError as error:
        # The parser appends lines of its own that point at the position.
        raise UsageError(f"{source}: {str(error).splitlines()[0]}") from error
    except (SyntaxError, tokenize.TokenError, ValueError, TypeError) as error:
        remedy = "write Group.name = value, with text in quotes"
        raise UsageError(f"{source}: not a gin configuration: {_reason(error)}; {remedy}") from error


def _reason(error: Exception) -> str:
    """What the parser found wrong, without what only its authors understand."""
    token = re.search(r"Failed to parse token (.+)", str(error))
    if token:
        return f"{token[1]} is no literal value"
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg.rstrip('.')}"
    return str(error.args[0] if isinstance(error, tokenize.TokenError) else error).rstrip(".")


def _find_include(name: str, folder: Path, where: str) -> Path:
    """An included file is looked for beside the including file, then in the repository."""
    places = dict.fromkeys((folder, REPOSITORY))
    for base in places:
        if (base / name).is_file():
            return base / name
    raise UsageError(f"{where}: included file {name!r} is not in {' or '.join(map(str, places))}")


def assemble(groups: dict[str, Settings]) -> Config:
    """The configuration whose groups, by their names in `GROUPS`, are these."""
    parts: dict[str, Any] = {}
    for name, slot in GROUPS.items():
        if len(slot.path) == 1:
            parts[slot.path[0]] = groups[name]
        else:
            parts.setdefault(slot.path[0], {})[slot.path[1]] = groups[name]
    types = {field.name: field.type for field in dataclasses.fields(Config)}
    return Config(**{k: types[k](**v) if isinstance(v, dict) else v for k, v in parts.items()})


def _build(bindings: dict[str, dict[str, _Binding]], macros: dict[str, _Binding]) -> Config:
    groups = {}
    for name, slot in GROUPS.items():
        fields = bindings.get(name, {})
        values = {f: _resolve(f"{name}.{f}", b.value, macros, b.where, ()) for f, b in fields.items()}
        try:
            groups[name] = slot.cls(**values)
        except UsageError as error:
            named = {b.where for f, b in fields.items() if re.search(rf"\b{name}\.{f}\b", str(error))}
            raise UsageError(f"{error} [{', '.join(sorted(named)) or 'default'}]") from error
    return assemble(groups)


def _resolve(name: str, value: Any, macros: dict[str, _Binding], where: str, chain: tuple[str, ...]) -> Any:
    """`value` with its macros replaced; macros may use macros, and a later definition wins, as in gin."""
    if isinstance(value, (list, tuple)) and not isinstance(value, _Macro):
        return tuple(_resolve(name, v, macros, where, chain) for v in value)
    if not isinstance(value, _Macro):
        return value
    if value.name == REQUIRED:
        raise UsageError(f"{name} is required: give it with --gin_param '{name} = ...' ({where})")
    if value.name in chain:
        raise UsageError(f"{where}: macro %{value.name} refers to itself")
    if value.name not in macros:
        raise UsageError(f"{where}: macro %{value.name} is not defined: {nearest(value.name, macros)}")
    binding = macros[value.name]
    return _resolve(name, binding.value, macros, binding.where, (*chain, value.name))


def _get(config: Config, path: tuple[str, ...]) -> Settings:
    value: Any = config
    for name in path:
        value = getattr(value, name)
    return value
