"""From a run directory to an artifact directory, all or nothing."""

import importlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ops import library
from rdfa import runtime
from rdfa.bench import cold_start, environment
from rdfa.config import Config
from rdfa.deploy import manifest as manifests
from rdfa.deploy import precision, verify
from rdfa.errors import RunError, UsageError
from rdfa.files import check_replaceable, replacing_folder
from rdfa.inference.fusion import AGNOSTIC_NAMES
from rdfa.modeling.detector import Detector
from rdfa.run_dir import RunDirectory, load_detector, write_weights
from rdfa.runtime import DTYPES
from rdfa.runtime.manifest import MANIFEST
from rdfa.settings import nearest

# Format -> file, and the backend that proves it.
FORMATS = {
    "torchscript": ("detector.ts.pt", "torchscript"),
    "onnx": ("detector.onnx", "onnxruntime"),
    "aoti": ("detector.pt2", "aoti"),
}
DEFAULT_FORMATS = ("torchscript", "onnx")  # aoti compiles C++, which takes a minute or two
DTYPES_OF = {"torchscript": DTYPES, "onnx": ("float32",), "aoti": DTYPES}
DEVICES = ("cpu", "cuda")
NATIVE = {"torchscript", "aoti"}  # formats that run on the operator library
WEIGHTS = "model.safetensors"


def export(
    run_dir: str | os.PathLike,
    output: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    dtypes: Sequence[str] = ("float32",),
    report: Callable[[str], None] = lambda step: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Export a run's averaged weights, check every file, and only then put the artifact in place.

    Args:
        checkpoint: as in `RunDirectory.checkpoint`. report: called with one line before each step.
        dtypes: of the computation; inputs and outputs are float32 in any case. Each format has a file for each dtype
            that it knows (`DTYPES_OF`); in other types than float32 its name says which: detector.bfloat16.ts.pt.
        device: where the TorchScript and AOTInductor files run, "cpu" or "cuda".

    Returns:
        The manifest; of each checked file ``files[name]["parity"]`` holds the figures, and ``["start"]`` what it takes
        to load it and run it once in a new process.

    Raises:
        UsageError: an unknown format or dtype, no such run, no such device here, or an `output` that is not an artifact
            to replace.
        RunError: a file does not compute what the detector computes. Nothing is left under `output`, or what was there.
    """
    formats = list(dict.fromkeys(formats))
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"unknown format {name!r}: {nearest(name, FORMATS)}")
    plan = _plan(formats, list(dict.fromkeys(dtypes)))
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}: valid: {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' was asked for, but torch finds no GPU here: export on a machine that has one")
    output = Path(output)
    check_replaceable(output, _is_artifact, "an artifact")
    run = RunDirectory(run_dir)
    folder = run.checkpoint(checkpoint)
    detector, config = load_detector(run_dir, folder)
    source = {"run": run.path.resolve().name, "checkpoint": folder.name, "weights": "ema"}
    manifest = manifests.describe(config, _class_list(run, config), source)
    with replacing_folder(output) as directory:
        for file in plan:
            report(f"writing {file.name}")
            _write(file, detector, config, directory, manifest, device)
        if NATIVE.intersection(formats):
            shutil.copyfile(library.path(), directory / library.path().name)
            manifests.add_file(manifest, directory / library.path().name, "library")
        manifests.write(directory, manifest)
        _verify(plan, detector, config, directory, manifest, report, device)
        _time_starts(plan, directory, manifest, report, device)
        manifests.write(directory, manifest)
    return manifest


class _File(NamedTuple):
    name: str
    format: str
    dtype: str

    @property
    def backend(self) -> str:
        return "eager" if self.format == "safetensors" else FORMATS[self.format][1]


def _plan(formats: list[str], dtypes: list[str]) -> list[_File]:
    """The files to write: the weights, and each format in each of the types that it has."""
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    plan = [_File(WEIGHTS, "safetensors", "float32")]
    for name in formats:
        known = [dtype for dtype in DTYPES_OF[name] if dtype in dtypes]
        if not known:
            valid = ", ".join(DTYPES_OF[name])
            raise UsageError(
                f"dtype {', '.join(dtypes)}: {name} files are {valid}; add that, or leave {name} out of the formats"
            )
        plan += [_File(_file_name(FORMATS[name][0], dtype), name, dtype) for dtype in known]
    return plan


def _file_name(name: str, dtype: str) -> str:
    return name if dtype == "float32" else name.replace(".", f".{dtype}.", 1)


def _write(file: _File, detector: Detector, config: Config, directory: Path, manifest, device: str) -> None:
    path, interface, time = directory / file.name, manifests.interface(config), verify.traced_time(detector)
    facts = {"dtype": file.dtype, **interface}
    module = precision.narrowed(detector, file.dtype)
    # Imported when asked for: each needs packages that the other does not.
    writer = importlib.import_module(f"rdfa.deploy.{file.format}") if file.format in FORMATS else None
    if file.format == "safetensors":
        write_weights(path, detector.state_dict())
    elif file.format == "onnx":
        writer.export(module, path, manifest, interface, time)
    elif file.format == "torchscript":
        writer.export(module, path, manifest, config.post, time, device)
        facts["device"] = device
    else:
        writer.export(module, path, time, device)
        facts |= {"device": device, "processor": torch.backends.cpu.get_cpu_capability()}
    manifests.add_file(manifest, path, file.format, **facts)


def _verify(plan: list[_File], detector: Detector, config: Config, directory: Path, manifest, report, device) -> None:
    """Fill in ``parity`` of each file; raises RunError naming the first size at which one fails."""
    sessions = {
        file: runtime.load(directory, file.backend, _device(file, manifest, device), dtype=file.dtype) for file in plan
    }
    narrow = {file.dtype: precision.narrowed(detector, file.dtype) for file in plan if file.dtype != "float32"}
    for batch, time in verify.sizes(detector):
        report(f"checking batch {batch}, time {time}")
        case = verify.make_case(detector, config, batch, time)
        limits = {dtype: verify.limit(module, case) for dtype, module in narrow.items()}
        for file, session in sessions.items():
            row = verify.check(session, case, config, limits.get(file.dtype))
            if not row.ok:
                raise RunError(
                    f"{file.name} gives other outputs than the detector at batch {batch}, time {time}: max |d| "
                    f"{row.parity.max_abs:.2g}, relative L2 {row.parity.relative_l2:.2g}, {row.detections:.1%} of the "
                    "detections equal; nothing was written: report this with the run's config.gin"
                )
            manifest["files"][file.name].setdefault("parity", []).append(row.as_dict())


def _time_starts(plan: list[_File], directory: Path, manifest, report, device: str) -> None:
    """Fill in ``start`` of each file: what a server waits for. One video of the usual length, default threads."""
    time = manifest["features"]["max_seq_len"]
    shape = cold_start.Shape(1, time)
    for file in plan:
        report(f"timing the start of {file.name}")
        where = _device(file, manifest, device)
        start = cold_start.measure(directory, file.backend, where, None, [shape], file.dtype)[shape]
        manifest["files"][file.name]["start"] = {"time": time, **start._asdict()}
    manifest["measured_on"] = environment.summary(environment.describe())


def _device(file: _File, manifest: dict[str, Any], device: str) -> str:
    """Where a file runs: where it was exported for; the weights, which run anywhere, where the others do."""
    if file.format == "safetensors":
        return device
    return manifest["files"][file.name].get("device", "cpu")


def _class_list(run: RunDirectory, config: Config) -> list[str]:
    """Class names by index; a class the run has no name for is called by its number."""
    names = AGNOSTIC_NAMES if config.dataset.class_agnostic else run.class_names()
    return [names.get(label, f"class_{label}") for label in range(config.model.cls_head.num_classes)]


def _is_artifact(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()
