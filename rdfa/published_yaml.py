"""The YAML files of the published repository (model.yaml, dataset.yaml, engine.yaml, run.yaml) as a `Config`.

Understood are YAML itself and the interpolations that the published files use: ``${path.to.key}``, alone or inside a
text, and ``${floordiv:a,b}``. Files are read with PyYAML's safe loader: they cannot construct objects.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rdfa.config import GROUPS, Config, assemble
from rdfa.errors import UsageError
from rdfa.files import read_bytes
from rdfa.settings import nearest

_BACKBONE = "model.backbone_info.ResidualSharedBiMambaBackbone"

# Published block -> settings group with the same fields.
_BLOCKS = {
    f"{_BACKBONE}.EmbeddingModule": "EmbeddingModule",
    f"{_BACKBONE}.StemModule": "StemModule",
    f"{_BACKBONE}.BranchModule": "BranchModule",
    "model.neck_info.FPNIdentity": "FPNIdentity",
    "model.neck_info.FPN1D": "FPN1D",
    "model.generator_info.PointGenerator": "PointGenerator",
    "model.head_info.PtTransformerClsHead": "PtTransformerClsHead",
    "model.head_info.PtTransformerRegHead": "PtTransformerRegHead",
    "engine.optimizer.SGD": "SGD",
    "engine.optimizer.AdamW": "AdamW",
    "engine.scheduler.LinearWarmupCosineAnnealingLR": "LinearWarmupCosineAnnealingLR",
    "engine.scheduler.LinearWarmupMultiStepLR": "LinearWarmupMultiStepLR",
    "engine.scheduler.CosineAnnealingLR": "CosineAnnealingLR",
    "engine.scheduler.MultiStepLR": "MultiStepLR",
    "wandb.init": "Wandb",
}

# Published setting -> ours, where the place differs.
_SETTINGS = {
    "model.backbone_info.name": "Detector.backbone",
    "model.neck_info.name": "Detector.neck",
    "model.generator_info.name": "Detector.generator",
    "model.head_info.name": "Detector.heads",
    "dataset.bench_info.num_classes": "Dataset.num_classes",
    "dataset.anno_info.format.file_path": "Dataset.annotation_file",
    "dataset.feat_info.format.dir_path": "Dataset.feature_dir",
    "dataset.feat_info.format.prefix": "Dataset.feature_prefix",
    "dataset.feat_info.format.type": "Dataset.feature_type",
    "dataset.feat_info.format.ext": "Dataset.feature_ext",
    "engine.criterion.name": "Criterion.name",
    "engine.optimizer.name": "Optimizer.name",
    "engine.scheduler.name": "Scheduler.name",
    "wandb.login.key": "Wandb.key",
}
for _block, _group, _names in (
    (
        "dataset.feat_info.meta",
        "Dataset",
        "feat_stride downsample_rate num_frames default_fps max_seq_len trunc_thresh crop_ratio",
    ),
    ("dataset.loader", "Loader", "pin_memory num_workers seed batch_size padding_value max_div_factor"),
    ("engine", "Training", "max_epochs clip_grad_l2norm print_freq"),
    (
        "engine",
        "Criterion",
        "center_sample center_sample_radius init_loss_norm init_loss_norm_momentum label_smoothing loss_weight",
    ),
    (
        "engine",
        "PostProcessing",
        "pre_nms_thresh pre_nms_topk duration_thresh nms_method iou_threshold min_score max_seg_num multiclass_nms "
        "nms_sigma voting_thresh ext_score_file",
    ),
):
    _SETTINGS |= {f"{_block}.{_name}": f"{_group}.{_name}" for _name in _names.split()}

# Blocks and settings that have no counterpart: paths and launching, which the command line replaces.
_WITHOUT_COUNTERPART = (
    "args", "benchmark_path", "dataset", "engine", "hydra", "job", "log_path", "loguru", "model", "model_path",
    "dataset.loader.max_seq_len",  # always that of the features
    "wandb.init.allow_val_change", "wandb.init.anonymous", "wandb.init.config_exclude_keys",
    "wandb.init.config_include_keys", "wandb.init.dir", "wandb.init.force", "wandb.init.magic",
    "wandb.init.monitor_gym", "wandb.init.reinit", "wandb.init.sync_tensorboard",
    "wandb.init.id", "wandb.init.name",  # a new training must not continue the old online record
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, reading 1e-8 as a number (YAML 1.2, and the published loader) and not as a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_config(files: Mapping[str, Path]) -> tuple[Config, list[str]]:
    """The configuration that published YAML files describe.

    Args:
        files: 'model', 'dataset', 'engine' and 'run', as far as there is one -> its path. What a missing file would set
            keeps the published default.

    Returns:
        The configuration, and the published names that have no counterpart and were left out.

    Raises:
        UsageError: a file that cannot be read, an unknown name, a wrong value, an interpolation that leads nowhere.
    """
    root = _compose(files)
    values: dict[str, dict[str, Any]] = {}
    ignored = []
    for name, text in _leaves(root):
        place = _place(name)
        if place is None:
            ignored.append(name)
        else:
            group, field = place
            value = _resolve(text, root, (name,))
            if value is not None or getattr(GROUPS[group].cls(), field) != "":  # nothing where a text is due: no text
                values.setdefault(group, {})[field] = value
    # Two settings repeat those of the model; without a dataset.yaml the model's hold.
    generator, head = values.get("PointGenerator", {}), values.get("PtTransformerClsHead", {})
    for field, source, key in (("max_seq_len", generator, "max_seq_len"), ("num_classes", head, "num_classes")):
        if key in source:
            values.setdefault("Dataset", {}).setdefault(field, source[key])
    groups = {name: slot.cls(**values.get(name, {})) for name, slot in GROUPS.items()}
    return assemble(groups), _summary(ignored)


def _compose(files: Mapping[str, Path]) -> dict[str, Any]:
    """One tree of all files: run.yaml is the root, and each other file brings the block of its name."""
    root = _read(files["run"]) if "run" in files else {}
    for name, path in files.items():
        if name != "run":
            tree = _read(path)
            if list(tree) != [name] or not isinstance(tree[name], dict):
                raise UsageError(f"{path} should hold one block '{name}:', as the published {name}.yaml does")
            root[name] = tree[name]
    return root


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(read_bytes(path), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is not a YAML file of settings")
    return tree


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is not a block; an empty block has none."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        elif value is not None or name not in _BLOCKS:
            yield name, value


def _place(name: str) -> tuple[str, str] | None:
    """The settings group and field that a published name stands for; None if it has no counterpart."""
    if name in _WITHOUT_COUNTERPART or name.split(".")[0] in set(_WITHOUT_COUNTERPART) - {"dataset", "engine", "model"}:
        return None
    if name in _SETTINGS:
        group, field = _SETTINGS[name].split(".")
        return group, field
    block, _, field = name.rpartition(".")
    if block in _BLOCKS and field in _fields(_BLOCKS[block]):
        return _BLOCKS[block], field
    valid = [*_SETTINGS, *_WITHOUT_COUNTERPART, *(f"{b}.{f}" for b, group in _BLOCKS.items() for f in _fields(group))]
    raise UsageError(f"unknown published setting {name}: {nearest(name, valid)}")


def _fields(group: str) -> list[str]:
    return [field.name for field in dataclasses.fields(GROUPS[group].cls)]


_INNERMOST = re.compile(r"\$\{([^${}]*)\}")


def _resolve(value: Any, root: dict[str, Any], chain: tuple[str, ...]) -> Any:
    """`value` with its interpolations replaced; a text that is one interpolation takes the type of what it names."""
    if isinstance(value, list):
        return [_resolve(element, root, chain) for element in value]
    while isinstance(value, str) and (match := _INNERMOST.search(value)):
        found = _evaluate(match[1], root, chain)
        value = found if match.span() == (0, len(value)) else value[: match.start()] + str(found) + value[match.end() :]
    return value


def _evaluate(expression: str, root: dict[str, Any], chain: tuple[str, ...]) -> Any:
    """What stands between ${ and }: a dotted name or floordiv."""
    if expression.startswith("floordiv:"):
        try:
            a, b = (int(argument) for argument in expression.removeprefix("floordiv:").split(","))
            return a // b
        except (ValueError, ZeroDivisionError) as error:
            raise UsageError(f"{chain[0]}: ${{{expression}}} is not a division of two integers: {error}") from error
    if expression in chain:
        raise UsageError(f"{chain[0]}: ${{{expression}}} refers to itself")
    found: Any = root
    for key in expression.split("."):
        if not isinstance(found, dict) or key not in found:
            file = expression.split(".")[0]
            remedy = f"give --{file}_yaml" if file in ("dataset", "engine", "model") else "give --run_yaml"
            raise UsageError(f"{chain[0]}: ${{{expression}}} names nothing: correct it, or {remedy}")
        found = found[key]
    return _resolve(found, root, (*chain, expression))


def _summary(names: Iterable[str]) -> list[str]:
    """Names with those of a whole block without counterpart given as the block."""
    return sorted({n if n in _WITHOUT_COUNTERPART else n.split(".")[0] for n in names})
