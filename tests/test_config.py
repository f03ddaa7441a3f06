"""Configuration: shipped files, defaults, round trips, and refusals that name the remedy."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdfa import config
from rdfa.errors import UsageError

GIN = Path(__file__).parent.parent / "gin"
PATHS = ["Dataset.annotation_file = 'a.json'", "Dataset.feature_dir = 'features'"]
RUN_FILES = sorted(GIN.glob("*.gin"))


def message(*gin_params: str) -> str:
    with pytest.raises(UsageError) as caught:
        config.load([], gin_params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda p: p.stem)
def test_shipped_run_files_load_and_survive_a_round_trip(path):
    loaded = config.load([path], PATHS)
    assert config.from_text(config.to_gin(loaded)) == loaded


def test_thumos14_binds_every_setting_to_its_published_default():
    loaded = config.load([GIN / "thumos14.gin"], PATHS)
    assert [d.split(":")[0] for d in config.differences(config.Config(), loaded)] == [
        "Dataset.annotation_file",
        "Dataset.feature_dir",
    ]
    text = "".join((GIN / f).read_text() for f in ("data/thumos14.gin", "model/rdfa_s6.gin", "engine/rdfa_s6.gin"))
    bound = {line.split(" = ")[0] for line in text.splitlines() if " = " in line and not line.startswith("#")}
    settings = {f"{g}.{f.name}" for g, slot in config.GROUPS.items() for f in dataclasses.fields(slot.cls)}
    assert bound == settings


def test_thumos14_names_what_it_requires():
    with pytest.raises(UsageError, match=r"Dataset\.annotation_file is required.*--gin_param"):
        config.load([GIN / "thumos14.gin"])


def test_later_bindings_win_and_macros_are_resolved_last(tmp_path):
    (tmp_path / "base.gin").write_text("N = 2\nLoader.batch_size = %N\nLoader.seed = 1\n")
    (tmp_path / "run.gin").write_text("include 'base.gin'\nN = 3\nLoader.seed = 2\n")
    loaded = config.load([tmp_path / "run.gin"], ["Loader.seed = 5"])
    assert (loaded.loader.batch_size, loaded.loader.seed) == (3, 5)


def test_includes_are_found_in_the_repository_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.gin").write_text("include 'gin/tiny.gin'\nLoader.batch_size = 7\n")
    monkeypatch.chdir(tmp_path)
    assert config.load(["mine.gin"], PATHS).loader.batch_size == 7


@given(
    batch=st.integers(1, 2**40),
    lr=st.floats(1e-300, 1e300),
    name=st.text(max_size=30),
    crop=st.none() | st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1.0)),
)
def test_every_value_survives_the_operative_config(batch, lr, name, crop):
    base = config.Config()
    changed = dataclasses.replace(
        base,
        loader=dataclasses.replace(base.loader, batch_size=batch),
        dataset=dataclasses.replace(base.dataset, annotation_file=name, crop_ratio=crop),
        engine=dataclasses.replace(base.engine, adamw=dataclasses.replace(base.engine.adamw, lr=lr)),
    )
    assert config.from_text(config.to_gin(changed)) == changed


def test_differences_name_the_setting_and_both_values():
    assert config.differences(config.Config(), config.load([], ["Loader.batch_size = 4"])) == [
        "Loader.batch_size: 2 -> 4"
    ]


def test_secrets_are_not_written():
    secret = config.load([], ["Wandb.key = 'abc123'"])
    assert secret.engine.wandb.key == "abc123"
    assert "abc123" not in config.to_gin(secret)


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("Loader.batchsize = 2", "did you mean 'batch_size'?"),
        ("Loadr.batch_size = 2", "did you mean 'Loader'?"),
        ("x = 1", "'x' is not a setting"),
        ("x = 1", ": valid: AdamW, BranchModule, "),
        ("Loder = 1", "did you mean 'Loader'?"),
        ("max_epoch = 1", "did you mean Training.max_epochs or CosineAnnealingLR.max_epochs?"),
        ("Detector.neck = 'FPN2D'", "did you mean 'FPN1D'?"),
        ("Loader.batch_size = 'two'", "Loader.batch_size = 'two': expected int"),
        ("Loader.batch_size = 2.5", "expected int"),
        ("Loader.batch_size = True", "expected int"),
        ("Loader.pin_memory = 1", "expected bool"),
        ("AdamW.lr = '1e-4'", "expected float"),
        (f"AdamW.lr = 1{'0' * 400}", "expected float"),
        (f"Loader.seed = {2**64}", "must be < "),
        ("Loader.max_div_factor = 5", "2304 is not a multiple of 160"),
        ("PtTransformerClsHead.kernel_size = 2", "PtTransformerClsHead.kernel_size = 2 changes the sequence length"),
        ("PtTransformerRegHead.kernel_size = 4", "PtTransformerRegHead.kernel_size = 4 changes the sequence length"),
        ("Training.tiou = []", "give at least one threshold"),
        ("Dataset.crop_ratio = [0.9]", "expected (float, float) or None"),
        ("Dataset.crop_ratio = [0.9, 0.5]", "lower end is above"),
        ("Loader.batch_size = 0", "must be >= 1"),
        ("StemModule.drop_path_rate = 1.0", "must be < 1"),
        ("PointGenerator.regression_range = [[0, -4]]", "must be >= 0"),
        ("EmbeddingModule.padding = 0", "changes the sequence length"),
        ("EmbeddingModule.groups = 7", "does not divide"),
        ("BranchModule.block_n = 4", "set both alike"),
        ("FPNIdentity.in_channels = 256", "set both alike"),
        ("Dataset.num_classes = 3", "set both"),
        ("Dataset.class_agnostic = True", "PtTransformerClsHead.num_classes = 20: it must be 1 with Dataset.class_agn"),
        ("Dataset.feature_dir = 5", "expected str or a list of str"),
        ("PtTransformerClsHead.empty_cls = [20]", "num_classes is 20"),
        ("Loader.batch_size = %N", "%N is not defined"),
        ("N = %N\nLoader.batch_size = %N", "refers to itself"),
        ("Dataset.annotation_file = %gin.REQUIRED", "is required"),
        ("train/Loader.batch_size = 2", "scope 'train'"),
        ("Loader.batch_size =", "write Group.name = value"),
        ("Loader.batch_size = (1,", "write Group.name = value"),
        ("AdamW.lr = nan", "'nan' (line 1) is no literal value"),
        (
            "Dataset.feature_dir = features",
            "'features' (line 1) is no literal value; write Group.name = value, with text",
        ),
        ("include 'nowhere.gin'", f"'nowhere.gin' is not in {GIN.parent}"),
    ],
)
def test_bad_bindings_name_value_and_remedy(binding, expected):
    assert expected in message(binding)


def test_a_wrong_value_is_traced_to_the_binding_that_holds_it(tmp_path):
    (tmp_path / "run.gin").write_text("Training.max_epochs = 3\nTraining.print_freq = 0\n")
    with pytest.raises(UsageError, match=r"print_freq = 0 is out of range: it must be >= 1 \[run\.gin:2\]$"):
        config.load([tmp_path / "run.gin"])
    text = "Training.max_epochs = 0"
    with pytest.raises(UsageError, match=rf"\[--gin_param '{text}'\]$"):
        config.load([tmp_path / "run.gin"], ["Training.print_freq = 1", text])


@pytest.mark.parametrize(
    "binding", ["import os", "from os import path", "Loader.seed = @os.getpid()", "Loader.seed = @Loader", "os.x = 1"]
)
def test_a_configuration_cannot_run_code(binding):
    message(binding)


def test_both_limits_of_max_seq_len():
    assert "not a multiple of 32" in message("Dataset.max_seq_len = 100", "PointGenerator.max_seq_len = 100")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.gin"):
        config.load([tmp_path / "missing.gin"])
    (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.gin"):
        config.load([tmp_path / "binary.gin"])
    (tmp_path / "loop.gin").write_text("include 'loop.gin'\n")
    with pytest.raises(UsageError, match="includes itself"):
        config.load([tmp_path / "loop.gin"])
    (tmp_path / "bad.gin").write_text("\nLoader.sed = 1\n")
    with pytest.raises(UsageError, match=r"bad\.gin:2: Loader has no setting 'sed': did you mean 'seed'"):
        config.load([tmp_path / "bad.gin"])
