"""Turns a run of the published repository into a run directory: YAML files and .pt become config.gin and safetensors.

    python -m rdfa.convert --model_yaml model.yaml --dataset_yaml dataset.yaml --checkpoint thumos_best.pt \\
        --output runs/thumos14

and a run directory into a folder to publish, with a model card (see `rdfa.deploy.hub`):

    python -m rdfa.convert --to safetensors --run_dir runs/thumos14 --metrics mAP.json --output rdfa-s6-thumos14

The first result is what train.py writes: export.py, rdfa.detect and train.py --mode test take it. The .pt is one of the
published engine (keys epoch, model, model_ema, optimizer, scheduler, mAP) or a bare state_dict. It is unpickled by
torch's weights-only reader, so a file that would run code is refused, not run. Optimiser and schedule are not taken
over: the published repository keeps neither the state of its random generators nor the position in its data, and its
training cannot be continued exactly; a new training can start from the same YAML files.
"""

import argparse
import math
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rdfa import cli
from rdfa.config import Config
from rdfa.data.annotations import load_annotations
from rdfa.errors import UsageError
from rdfa.modeling.detector import build_detector
from rdfa.published_yaml import read_config
from rdfa.run_dir import make_folder, point, write_checkpoint, write_config

# A profiler that the published engine runs leaves these buffers behind in every module.
PROFILER_BUFFERS = ("total_ops", "total_params")
# The published mAP is a numpy.float64. numpy 1 pickled it under the first name, numpy 2 under the second.
_NUMPY_SCALAR = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


class Published(NamedTuple):
    """What a .pt file holds."""

    model: dict[str, Tensor]
    model_ema: dict[str, Tensor]
    meta: dict[str, Any]  # epoch and mAP, as far as known
    notes: list[str]  # what a user should know about the file
    dropped: list[str]  # profiler buffers


def read_checkpoint(path: Path) -> Published:
    """The weights in a .pt of the published repository, or in a bare state_dict.

    Raises:
        UsageError: a file that is missing, empty, cut short, that would run code, or that holds no weights.
    """
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        notes = []
        averaged = content.get("model_ema")
        if not isinstance(averaged, dict):
            notes.append("no model_ema: the weights of training serve for evaluation too")
            averaged = content["model"]
        left_out = [key for key in content if key not in ("epoch", "model", "model_ema", "mAP")]
        if left_out:
            notes.append(f"not taken over: {', '.join(left_out)} (a published training cannot be continued exactly)")
        meta = {}
        for name, kind in (("epoch", int), ("mAP", float)):
            if name in content:
                try:
                    meta[name] = _figure(kind, content[name])
                except (TypeError, ValueError, OverflowError):
                    notes.append(f"{name} = {content[name]!r:.40} is not a figure: left out")
        model = content["model"]
    else:
        notes = ["a bare state_dict: the same weights serve for training and evaluation"]
        model = averaged = content
        meta = {}
    dropped = [name for name in model if str(name).rpartition(".")[2] in PROFILER_BUFFERS]
    return Published(_weights(model, path), _weights(averaged, path), meta, notes, dropped)


def check_fit(state: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Raise UsageError unless `state` has exactly the names and shapes of `wanted`, naming what differs."""
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
    }
    found = [f"{len(names)} {kind} ({_shortened(names)})" for kind, names in problems.items() if names]
    if found:
        raise UsageError(f"{path} does not fit the model YAML: {'; '.join(found)}. Give the model.yaml of the same run")


def convert(yaml_files: dict[str, Path], checkpoint: Path, output: Path) -> list[str]:
    """Write the run directory `output`; returns what was done, line by line.

    Args:
        yaml_files: see `rdfa.published_yaml.read_config`; 'model' is required.
    """
    if (output / "config.gin").exists():
        raise UsageError(f"{output} is a run directory already: choose another --output")
    config, ignored = read_config(yaml_files)
    published = read_checkpoint(checkpoint)
    wanted = build_detector(config.model).state_dict()
    for state in (published.model, published.model_ema):
        check_fit(state, wanted, checkpoint)
    names = _class_names(config)
    make_folder(output)
    step = published.meta.get("epoch", 0)
    meta = {**published.meta, "converted_from": checkpoint.name}
    # In the order of our state_dict, whatever the file's was.
    model, averaged = ({name: state[name] for name in wanted} for state in (published.model, published.model_ema))
    folder = write_checkpoint(output, step, model, averaged, meta)
    for pointer in ("latest", "best"):
        point(output, pointer, step)
    write_config(output, config, names)  # last: it makes the folder a run directory

    about = ", ".join(f"{key} {value}" for key, value in published.meta.items())
    lines = [f"read {', '.join(str(path) for path in yaml_files.values())}"]
    if ignored:
        lines.append(f"  without counterpart, left out: {', '.join(ignored)}")
    lines.append(f"read {checkpoint}{f' ({about})' if about else ''}")
    lines += [f"  {note}" for note in published.notes]
    if published.dropped:
        lines.append(f"  left out: {len(published.dropped)} profiler buffers ({', '.join(PROFILER_BUFFERS)})")
    count = sum(tensor.numel() for tensor in wanted.values())
    lines.append(f"wrote {folder}: {count:,} parameters in {len(wanted)} tensors, for training and for evaluation")
    lines.append(f"wrote {output / 'config.gin'}")
    if names is None:
        lines.append("  no class names: the annotation file of the dataset YAML is not here; detections carry numbers")
    else:
        lines.append(f"wrote {output / 'classes.json'}: {len(names)} class names")
    return lines


def _figure(kind: type, value: Any) -> Any:
    """`value` as a number from 0 up; raises where it is none."""
    number = kind(value)
    if not 0 <= number < math.inf:
        raise ValueError(value)
    return number


def _load(path: Path) -> Any:
    try:
        # torch does not look at the checksums in the file.
        if zipfile.is_zipfile(path) and (damaged := zipfile.ZipFile(path).testzip()):
            raise UsageError(f"{path} is damaged: {damaged} in it has another checksum than was written: copy it again")
        with torch.serialization.safe_globals(_NUMPY_SCALAR), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UsageError:
        raise
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        text = str(error)
        if named := re.search(r"GLOBAL (\S+)", text):
            raise UsageError(
                f"{path} was refused: it holds {named[1]}, neither a tensor nor a number, and loading it could "
                "run code. Save the weights alone: torch.save(model.state_dict(), ...)"
            ) from error
        if _is_plain_pickle(path):
            raise UsageError(
                f"{path} was refused: it is a pickle of something else than weights, and loading it could run code. "
                "Save the weights alone: torch.save(model.state_dict(), ...)"
            ) from error
        reason = re.split(r"\. |\n", text)[0] if "zip archive" in text or not text else "unreadable content"
        raise UsageError(f"{path} is not a whole .pt file of weights ({reason or 'empty'}): copy it again") from error


def _is_plain_pickle(path: Path) -> bool:
    """Whether the file starts as a pickle of protocol 2 or later does, and ends as a pickle does."""
    content = path.read_bytes()
    return content[:1] == b"\x80" and content[-1:] == b"."


def _weights(state: Any, path: Path) -> dict[str, Tensor]:
    """The float32 tensors of a state_dict, without the profiler's."""
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} holds no weights: expected a state_dict, or a dictionary with one under 'model'")
    weights = {name: value.float() for name, value in state.items() if name.rpartition(".")[2] not in PROFILER_BUFFERS}
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise UsageError(f"{path} holds weights that are not finite: {_shortened(broken)}; use an earlier checkpoint")
    return weights


def _shortened(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")


def _class_names(config: Config) -> dict[int, str] | None:
    """The class names in the annotation file, if that is at hand."""
    path = config.dataset.annotation_file
    if not path or not Path(path).is_file():
        return None
    return load_annotations(path).class_names


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(
        prog="python -m rdfa.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", choices=("run", "safetensors"), default="run", help="what to write (default: a run)")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--checkpoint", metavar="C", help="weights: a .pt; with --run_dir best, latest or a step folder"
    )
    published = parser.add_argument_group("from the published repository")
    published.add_argument("--model_yaml", type=Path, metavar="M", help="model.yaml of the published run")
    for name in ("dataset", "engine", "run"):
        published.add_argument(f"--{name}_yaml", type=Path, metavar="Y", help=f"its {name}.yaml; without: the defaults")
    publishing = parser.add_argument_group("--to safetensors")
    publishing.add_argument("--run_dir", metavar="RUN", help="run directory, written by train.py or this command")
    publishing.add_argument("--metrics", metavar="M.json", help="of rdfa.evaluate --output, for the model card")
    publishing.add_argument("--license", metavar="ID", help="for the model card, such as apache-2.0")
    args = parser.parse_args(argv)
    if args.to == "safetensors":
        _publish(args)
        return
    if not (args.model_yaml and args.checkpoint):
        raise UsageError("a run is made of --model_yaml and --checkpoint; see --help for a folder to publish")
    if args.run_dir or args.metrics or args.license:
        raise UsageError("--run_dir, --metrics and --license make a folder to publish: give --to safetensors")
    files = {name: getattr(args, f"{name}_yaml") for name in ("model", "dataset", "engine", "run")}
    for line in convert({name: path for name, path in files.items() if path}, Path(args.checkpoint), args.output):
        print(line)


def _publish(args: argparse.Namespace) -> None:
    if not args.run_dir:
        raise UsageError("--to safetensors publishes a run: give --run_dir (a published .pt becomes one first)")
    # It needs all of export, which reading a published run does not.
    from rdfa.deploy.hub import publish

    manifest = publish(args.run_dir, args.output, args.checkpoint, args.metrics, args.license)
    for name, entry in manifest["files"].items():
        print(f"wrote {args.output / name}: {entry['size']:,} bytes, SHA-256 {entry['sha256']}")
    print(f"wrote {args.output}: README.md (the model card), config.gin, manifest.json; upload the folder as it is")


if __name__ == "__main__":
    sys.exit(cli.run(main))
