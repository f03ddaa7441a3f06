"""The four benchmarks: what their configurations say, and one epoch of each on data of its shape and layout."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from rdfa import cli
from rdfa.config import load
from rdfa.data.annotations import load_annotations

GIN = Path(__file__).parent.parent / "gin"
RDFA_DATA = os.environ.get("RDFA_DATA")
PATHS = ["Dataset.annotation_file = 'a.json'", "Dataset.feature_dir = 'features'"]
WIDE = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
NARROW = (0.3, 0.4, 0.5, 0.6, 0.7)

# Classes of the benchmark and of the detector; channels; longest training sequence; thresholds; subsets; whether videos
# are resized; whether classes are suppressed apart.
FACTS = {
    "thumos14": (20, 20, 3200, 2304, NARROW, ("Validation", "Test"), False, True),
    "activitynet": (200, 1, 3200, 192, WIDE, ("training", "validation"), True, False),
    "hacs": (200, 1, 3200, 2304, WIDE, ("training", "validation"), False, False),
    "fineaction": (106, 106, 1408, 2304, WIDE, ("training", "validation"), False, True),
}


@pytest.mark.parametrize("name", FACTS)
def test_configurations_say_what_the_field_uses(name):
    config = load([GIN / f"{name}.gin"], PATHS)
    dataset = config.dataset
    assert FACTS[name] == (
        dataset.num_classes,
        config.model.cls_head.num_classes,
        config.model.embedding.input_c,
        dataset.max_seq_len,
        config.engine.training.tiou,
        (dataset.train_subset, dataset.test_subset),
        dataset.resize,
        config.post.multiclass_nms,
    )
    assert dataset.class_agnostic == (config.model.cls_head.num_classes == 1)
    assert (dataset.grid, dataset.default_fps) == {
        "thumos14": ((4, 16), None),
        "activitynet": ((1, 1), None),
        "hacs": ((8, 16), 30.0),
        "fineaction": ((8, 16), 30.0),
    }[name]
    assert dataset.max_seq_len % config.model.coarsest_stride == 0


def write_video(folder: Path, name: str, length: int, channels: int) -> None:
    """Features of rank one, so that writing them takes no time: as float16, as downloads often are."""
    random = np.random.default_rng(length)
    array = np.outer(random.standard_normal(length), random.standard_normal(channels)).astype(np.float16)
    if name.endswith(".pt"):
        torch.save(torch.from_numpy(array), folder / name)
    elif name.endswith(".pkl"):
        (folder / name).write_bytes(pickle.dumps(array))
    else:
        np.save(folder / name, array)


def actions(classes: list[str], duration: float, label_ids: bool, number: int) -> list[dict]:
    starts = np.linspace(0, 0.8 * duration, len(classes))
    rows = [{"segment": [start, start + 0.1 * duration], "label": label} for start, label in zip(starts, classes)]
    if number == 0:  # what real files have: a repetition, an empty segment, and one past the end
        rows += [rows[0], rows[0] | {"segment": [1.0, 1.0]}, rows[0] | {"segment": [0.9 * duration, 1.1 * duration]}]
    if label_ids:
        rows = [row | {"label_id": str(int(row["label"].split()[1]))} for row in rows]
    return rows


def thumos14(folder: Path) -> Path:
    """ActionFormer's layout, or, where there is one, its very file, of which six videos have features."""
    if RDFA_DATA:
        path = Path(RDFA_DATA, "thumos14/thumos14.json.gz")
        loaded = load_annotations(path)
        chosen = [*loaded.subset("Validation")[:4], *loaded.subset("Test")[:2]]
        for video in chosen:
            length = max(int((video.duration * video.fps - 16) / 4), 1)
            write_video(folder, f"{video.id}.npy", min(length, 3000), 3200)
        return path
    return write(
        folder, 20, ("validation", "test"), "video_{:07d}", 3200, (150, 2500), ".npy", 4, fps=30.0, label_ids=True
    )


def activitynet(folder: Path) -> Path:
    """The official layout: neither fps nor label_id; features under InternVideo2's names."""
    return write(
        folder,
        200,
        ("training", "validation"),
        "id-{:03d}_x",
        3200,
        (5, 900),
        "_spatial_pool_feature_6.pt",
        8,
        prefix="v_",
    )


def hacs(folder: Path) -> Path:
    """The official layout: durations are strings, ids have no v_; features under other names, of another kind."""
    return write(folder, 200, ("Training", "VALIDATION"), "{:011d}", 3200, (30, 1200), ".pkl", 8, text=True)


def fineaction(folder: Path) -> Path:
    return write(folder, 106, ("train", "val"), "v_{:08d}", 1408, (50, 5000), "_spatial_pool_feature_5.pt", 4)


def write(
    folder,
    num_classes,
    subsets,
    name,
    channels,
    lengths,
    ending,
    stride,
    prefix="",
    text=False,
    fps=None,
    label_ids=False,
):
    """Four training and two test videos that show all classes, and one video more whose features are missing."""
    classes = [f"class {i}" for i in range(num_classes)]
    database = {}
    for i, length in enumerate(np.linspace(*lengths, 6).astype(int)):
        duration = round((length * stride + 12) / 30, 3)
        shown = classes[i::4] if i < 4 else classes[i - 4 :: 2]
        entry = {"subset": subsets[i >= 4], "duration": str(duration) if text else duration}
        entry |= {"fps": fps} if fps else {}
        database[name.format(i)] = entry | {"annotations": actions(shown, duration, label_ids, i)}
        write_video(folder, prefix + name.format(i) + ending, int(length), channels)
    path = folder / "annotations.json"
    path.write_text(json.dumps({"version": "1.3", "taxonomy": [], "database": database}))
    return path


def run(name, run_dir, annotations, features, *params):
    settings = [
        "EMB_C = 8",
        "StemModule.recurrent = 1",
        "Loader.num_workers = 0",
        "Loader.batch_size = 2",
        "Training.max_epochs = 1",
        "LinearWarmupCosineAnnealingLR.T_warmup = 0",
        "PostProcessing.pre_nms_topk = 100",
        f"Dataset.annotation_file = '{annotations}'",
        f"Dataset.feature_dir = '{features}'",
        "Dataset.skip_missing = True",
        *params,
    ]
    flags = [part for text in settings for part in ("--gin_param", text)]
    assert cli.run(train.main, ["--gin_file", str(GIN / f"{name}.gin"), "--run_dir", str(run_dir), *flags]) == 0
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", FACTS)
def test_one_epoch_on_data_of_its_shape(name, tmp_path, capsys):
    features = tmp_path / "features"
    features.mkdir()
    annotations = globals()[name](features)
    trained, evaluated = run(name, tmp_path / "run", annotations, features)
    assert (trained["kind"], trained["step"], evaluated["kind"]) == ("train", 2, "eval")
    assert np.isfinite([trained["loss"], trained["grad_norm"]]).all() and trained["reg_loss"] > 0
    assert [f"mAP@{tiou:g}" in evaluated for tiou in FACTS[name][4]] == [True] * len(FACTS[name][4])
    agnostic = "actions of all classes are evaluated as one" in capsys.readouterr().out
    assert agnostic == (FACTS[name][1] == 1)


def test_class_scores_name_the_actions_of_activitynet(tmp_path):
    """Scores that know the classes of the test videos, in an order of their own, by ids with v_."""
    features = tmp_path / "features"
    features.mkdir()
    annotations = activitynet(features)
    classes = [f"class {i}" for i in range(200)][::-1]
    results = {f"v_id-00{4 + i}_x": [0.9 if int(c.split()[1]) % 2 == i else 0.0 for c in classes] for i in range(2)}
    (tmp_path / "scores.json").write_text(json.dumps({"results": results, "class": classes}))
    scores = f"PostProcessing.ext_score_file = '{tmp_path / 'scores.json'}'"
    run("activitynet", tmp_path / "run", annotations, features, scores)
    assert cli.run(train.main, ["--run_dir", str(tmp_path / "run"), "--mode", "test"]) == 0
    found = json.loads((tmp_path / "run" / "detections.json").read_text())
    assert found["external_data"] == {"used": True, "details": "class scores scores.json"}
    for i, entries in enumerate(found["results"].values()):
        labels = {entry["label"] for entry in entries}
        assert len(labels) == 2 and {int(label.split()[1]) % 2 for label in labels} == {i}
    test = json.loads((tmp_path / "run" / "test.json").read_text())
    assert len(test["per_class"]) == 200 and test["tiou"] == list(WIDE)
