"""A folder to publish: weights, configuration and a model card, in the layout of the Hugging Face hub.

    README.md  config.gin  classes.json  model.safetensors  manifest.json

It is an artifact (`--artifact`, run by PyTorch, hashes checked) and a run directory (`--run_dir`: detection, export,
train.py --mode test) at once. Nothing here uses a network: whoever publishes uploads the folder, and whoever uses it
downloads a revision of it, with the hub's own tools or as a git repository.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rdfa.config import Config, to_gin
from rdfa.deploy import manifest as manifests
from rdfa.deploy.artifact import WEIGHTS, export
from rdfa.errors import RunError
from rdfa.files import parse_json, read_json_lines, replacing
from rdfa.inference.results import read_text
from rdfa.run_dir import RunDirectory, load_meta, write_config

CARD = "README.md"
SHOWN_CLASSES = 30


def publish(
    run_dir: str | os.PathLike,
    output: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    metrics: str | os.PathLike | None = None,
    license: str | None = None,
) -> dict[str, Any]:
    """Write the folder `output` from a run's averaged weights; returns its manifest.

    Of the paths of data only the last parts are kept: the folders of a machine are nobody else's business.

    Args:
        checkpoint: as in `RunDirectory.checkpoint`.
        metrics: what ``rdfa.evaluate --output`` wrote, for the card; None: what training recorded, if anything.
        license: identifier for the header of the card, such as apache-2.0; None: left to whoever publishes.

    Raises:
        UsageError, RunError: as `rdfa.deploy.export`; metrics that are not those of rdfa.evaluate.
    """
    run = RunDirectory(run_dir)
    figures = _read_metrics(metrics) if metrics is not None else _recorded(run, run.checkpoint(checkpoint))
    config = run.config()
    config = _without_folders(config)
    output = Path(output)
    manifest = export(run_dir, output, checkpoint, formats=())
    manifest["config"] = to_gin(config)
    manifests.write(output, manifest)
    write_config(output, config, run.class_names() or None)
    with replacing(output / CARD) as temporary:
        temporary.write_text(card(output.resolve().name, manifest, config, figures, license), encoding="utf-8")
    return manifest


def card(
    name: str, manifest: Mapping[str, Any], config: Config, figures: Mapping[str, float], license: str | None
) -> str:
    """The model card: the header that the hub reads, then what a person should know.

    Args:
        figures: name of the metric -> value, such as {"mAP": 0.65, "mAP@0.5": 0.7}.
    """
    header: dict[str, Any] = {"library_name": "rdfa-s6", "tags": ["temporal-action-localization", "video", "mamba"]}
    if license is not None:
        header["license"] = license
    data = Path(config.dataset.annotation_file).name.partition(".")[0] or "unknown"
    if figures:
        result = {
            "task": {"type": "temporal-action-localization", "name": "Temporal action localization"},
            "dataset": {"type": data, "name": data, "split": config.dataset.test_subset},
            "metrics": [{"type": "mAP", "name": key, "value": round(value, 6)} for key, value in figures.items()],
        }
        header["model-index"] = [{"name": name, "results": [result]}]
    weights, features, classes = manifest["files"][WEIGHTS], manifest["features"], manifest["classes"]
    length = (
        f"resized to {features['resize']}" if features["resize"] else f"padded to {features['max_seq_len']} or more"
    )
    more = f", and {len(classes) - SHOWN_CLASSES} more (`classes.json`)" if len(classes) > SHOWN_CLASSES else ""
    facts = {
        "Input": f"clip features [time, {features['dimension']}], one every {features['stride']} frames, each of "
        f"{features['num_frames']} frames; {length} clips",
        "Classes": f"{len(classes)}: {', '.join(classes[:SHOWN_CLASSES])}{more}",
        "Weights": f"`{WEIGHTS}`, {weights['size'] / 1e6:.1f} MB, SHA-256 `{weights['sha256']}`",
        "Source": ", ".join(f"{key} {value}" for key, value in manifest["source"].items()),
        "Versions": ", ".join(f"{key} {value}" for key, value in manifest["versions"].items() if value),
    }
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    table = "".join(f"| {key} | {value:.4f} |\n" for key, value in figures.items())
    accuracy = f"| metric | value |\n|---|---|\n{table}" if figures else "Not measured: the run has no evaluation.\n"
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---

# {name}

Finds actions in long untrimmed videos: in, a sequence of clip features; out, (start second, end second, class, score).
The model is RDFA-S6 ([arXiv 2407.13078](https://arxiv.org/abs/2407.13078)).

| | |
|---|---|
{rows}
## Accuracy

{accuracy}
On the subset {config.dataset.test_subset} of {data}.

## Use

```
python -m rdfa.detect --run_dir {name} --features FEATURES --annotations ANNOTATIONS.json --output detections.json
python export.py --run_dir {name} --output artifact --formats torchscript,onnx
```

where `{name}` is this folder: a download of the revision that you name, with `hf download` or git. Padding is part of
the model's input, and `config.gin` holds all settings that detections depend on; both commands follow it.
"""


def _without_folders(config: Config) -> Config:
    def last(path: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        return tuple(map(last, path)) if isinstance(path, tuple) else path and Path(path).name

    changed = {name: last(getattr(config.dataset, name)) for name in ("annotation_file", "feature_dir")}
    return dataclasses.replace(
        config,
        dataset=dataclasses.replace(config.dataset, **changed),
        post=dataclasses.replace(config.post, ext_score_file=last(config.post.ext_score_file)),
    )


def _read_metrics(path: str | os.PathLike) -> dict[str, float]:
    content = parse_json(path, read_text(path))
    try:
        per_threshold = {f"mAP@{tiou:g}": float(value) for tiou, value in zip(content["tiou"], content["mAP"])}
        return {"mAP": float(content["average_mAP"]), **per_threshold}
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} holds no metrics: expected a file that rdfa.evaluate --output wrote") from error


def _recorded(run: RunDirectory, checkpoint: Path) -> dict[str, float]:
    """What training recorded of a checkpoint: the evaluation at its step, else the mAP that it remembers."""
    meta = load_meta(checkpoint)
    log = run.path / "metrics.jsonl"
    if log.is_file():
        for row in reversed(read_json_lines(log)):
            if row.get("kind") == "eval" and row.get("step") == meta.get("step"):
                return {name: value for name, value in row.items() if name.startswith("mAP")}
    return {"mAP": meta["mAP"]} if meta.get("mAP") is not None else {}
