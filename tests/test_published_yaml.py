"""The published YAML files become the settings that mean the same; everything else is refused with one line."""

import copy
from pathlib import Path

import pytest

from rdfa.config import Config, differences
from rdfa.errors import UsageError
from rdfa.published_yaml import read_config
from tests.published_run import write_yaml, yaml_trees

BACKBONE = ("model", "model", "backbone_info", "ResidualSharedBiMambaBackbone")
META = ("dataset", "dataset", "feat_info", "meta")


def changed(path: tuple[str, ...], value) -> dict:
    """The published trees with one value replaced; Ellipsis removes it."""
    trees = copy.deepcopy(yaml_trees())
    *blocks, key = path
    tree = trees
    for name in blocks:
        tree = tree[name]
    if value is ...:
        del tree[key]
    else:
        tree[key] = value
    return trees


def read(folder: Path, trees: dict) -> Config:
    return read_config(write_yaml(folder, trees))[0]


def test_published_files_are_our_defaults(tmp_path):
    config, ignored = read_config(write_yaml(tmp_path, yaml_trees()))
    assert differences(Config(), config) == [
        "LinearWarmupCosineAnnealingLR.T_max: None -> 50",
        "Wandb.key: '' -> 'secret-key'",
        "Wandb.tags: () -> ('THUMOS14', 'RDFA-S6')",
    ]
    assert ignored == [
        "args", "dataset.loader.max_seq_len", "hydra", "job", "log_path", "loguru", "wandb.init.dir",
        "wandb.init.magic", "wandb.init.name",
    ]  # fmt: skip


def test_the_model_file_alone_settles_what_the_data_must_agree_with(tmp_path):
    trees = yaml_trees(input_c=24, emb_c=32, num_classes=7)
    trees["model"]["model"]["generator_info"]["PointGenerator"]["max_seq_len"] = 1152
    config, ignored = read_config(write_yaml(tmp_path, {"model": trees["model"]}))
    assert config.dataset.num_classes == 7 and config.dataset.max_seq_len == 1152
    assert config.model.stem.emb_c == config.model.branch.emb_c == 32 and config.model.embedding.padding == 1
    assert not ignored


@pytest.mark.parametrize("path, value, ours", [
    ((*BACKBONE, "StemModule", "recurrent"), 2, ("model", "stem", "recurrent", 2)),
    (("dataset", "dataset", "anno_info", "format", "file_path"), "a.json", ("dataset", "annotation_file", "a.json")),
    ((*META, "crop_ratio"), None, ("dataset", "crop_ratio", None)),
    ((*META, "default_fps"), 30, ("dataset", "default_fps", 30.0)),
    (("engine", "engine", "optimizer", "AdamW", "lr"), "${floordiv:7,2}", ("engine", "adamw", "lr", 3.0)),
    (("engine", "engine", "iou_threshold"), 0.2, ("post", "iou_threshold", 0.2)),
    (("engine", "engine", "init_loss_norm"), 250, ("engine", "criterion", "init_loss_norm", 250.0)),
], ids=lambda value: str(value)[-30:])  # fmt: skip
def test_a_setting_lands_where_it_belongs(tmp_path, path, value, ours):
    *place, expected = ours
    found = read(tmp_path, changed(path, value))
    for name in place:
        found = getattr(found, name)
    assert found == expected and type(found) is type(expected)


def test_hand_written_yaml_reads_as_the_published_loader_reads_it(tmp_path):
    files = write_yaml(tmp_path, yaml_trees())
    files["engine"].write_text(
        "engine:\n  clip_grad_l2norm: 1.  # a comment\n  ext_score_file:\n"
        "  optimizer:\n    SGD:\n    AdamW:\n      lr: 2e-3\n"
        "  scheduler:\n    MultiStepLR:\n      milestone_epochs: [3, 5]\n"
    )
    config, _ = read_config(files)
    assert config.engine.adamw.lr == 2e-3 and config.engine.multistep.milestone_epochs == (3, 5)
    assert config.post.ext_score_file is None


@pytest.mark.parametrize("path, value, message", [
    ((*BACKBONE, "StemModule", "recurent"), 2, r"StemModule\.recurent: did you mean '.*StemModule\.recurrent'"),
    ((*BACKBONE, "StemModule", "recurrent"), "four", r"StemModule\.recurrent = 'four': expected int"),
    ((*BACKBONE, "StemModule", "recurrent"), 0, r"StemModule\.recurrent = 0 is out of range"),
    (("engine", "engine", "scheduler", "name"), "Cosine", r"Scheduler\.name = 'Cosine' is unknown"),
    (("engine", "engine", "typo"), 1, r"unknown published setting engine\.typo"),
    (("run", "wandb", "int"), {"name": "x"}, r"unknown published setting wandb\.int\.name"),
    ((*META, "max_seq_len"), 1152, r"Dataset\.max_seq_len = 1152 and PointGenerator\.max_seq_len = 2304"),
    ((*META, "feat_stride"), "${dataset.nothing}", r"feat_stride: \$\{dataset\.nothing\} names nothing"),
    ((*META, "feat_stride"), "${dataset.feat_info.meta.feat_stride}", r"feat_stride\} refers to itself"),
    ((*META, "feat_stride"), "${floordiv:4}", r"\$\{floordiv:4\} is not a division"),
    ((*META, "feat_stride"), "${floordiv:4,0}", r"\$\{floordiv:4,0\} is not a division"),
    ((*META, "feat_stride"), "${oc.env:HOME}", r"\$\{oc\.env:HOME\} names nothing"),
    (("model", "modle"), {}, r"model\.yaml should hold one block 'model:'"),
], ids=lambda value: str(value)[-40:])  # fmt: skip
def test_what_has_no_meaning_is_refused(tmp_path, path, value, message):
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, changed(path, value))
    assert "\n" not in str(caught.value)


def test_interpolation_of_a_file_not_given_names_the_flag(tmp_path):
    trees = changed(
        ("model", "model", "head_info", "PtTransformerClsHead", "num_classes"), "${dataset.bench_info.num_classes}"
    )
    assert read(tmp_path, trees).model.cls_head.num_classes == 20
    with pytest.raises(UsageError, match="give --dataset_yaml"):
        read(tmp_path, {"model": trees["model"]})


@pytest.mark.parametrize("text, message", [
    ("model: [1, 2", "line 1 is not valid YAML"),
    ("model:\n    a: 1\n   b: 2\n", "line 3 is not valid YAML"),
    ("model: !!python/object/apply:os.system ['touch evil']\n", "is not valid YAML: could not determine a constructor"),
    ("", "is not a YAML file of settings"),
    ("- 1\n", "is not a YAML file of settings"),
])  # fmt: skip
def test_broken_files_are_refused(tmp_path, text, message):
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_config({"model": path})
    with pytest.raises(UsageError, match="cannot read"):
        read_config({"model": tmp_path / "absent.yaml"})


def test_no_published_setting_is_dropped_silently(tmp_path):
    """Every leaf has a place, where a value that makes no sense is refused, or is listed as without counterpart."""
    trees = yaml_trees()
    _, ignored = read_config(write_yaml(tmp_path, trees))

    def leaves(tree, path=()):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, (*path, key))
            else:
                yield (*path, key)

    checked = 0
    for file, tree in trees.items():
        for path in leaves(tree):
            name = ".".join(path)
            if name in ignored or path[0] in ignored or len(path) == 1:
                continue
            with pytest.raises(UsageError):
                read(tmp_path, changed((file, *path), [["no sense"]]))
            checked += 1
    assert checked > 70
