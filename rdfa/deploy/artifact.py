"""From a run directory to an artifact directory, all or nothing."""

import importlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ops import library
from rdfa import runtime
from rdfa.config import Config
from rdfa.deploy import manifest as manifests
from rdfa.deploy import verify
from rdfa.errors import RunError, UsageError
from rdfa.files import check_replaceable, replacing_folder
from rdfa.inference.fusion import AGNOSTIC_NAMES
from rdfa.modeling.detector import Detector
from rdfa.run_dir import RunDirectory, load_detector, write_weights
from rdfa.runtime.manifest import MANIFEST
from rdfa.settings import nearest

# Format -> file, and the backend that proves it.
FORMATS = {
    "torchscript": ("detector.ts.pt", "torchscript"),
    "onnx": ("detector.onnx", "onnxruntime"),
    "aoti": ("detector.pt2", "aoti"),
}
DEFAULT_FORMATS = ("torchscript", "onnx")  # aoti compiles C++, which takes a minute or two
DTYPES = ("float32",)
NATIVE = {"torchscript", "aoti"}  # formats that run on the operator library
WEIGHTS = "model.safetensors"


def export(
    run_dir: str | os.PathLike,
    output: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    dtype: str = "float32",
    report: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Export a run's averaged weights, check every file, and only then put the artifact in place.

    Args:
        checkpoint: as in `RunDirectory.checkpoint`. report: called with one line before each step.

    Returns:
        The manifest; ``files[name]["parity"]`` holds the figures of each checked file.

    Raises:
        UsageError: an unknown format or dtype, no such run, or an `output` that is not an artifact to replace.
        RunError: a file does not compute what the detector computes. Nothing is left under `output`, or what was there.
    """
    formats = list(dict.fromkeys(formats))
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"unknown format {name!r}: {nearest(name, FORMATS)}")
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: this version exports {', '.join(DTYPES)}")
    output = Path(output)
    check_replaceable(output, _is_artifact, "an artifact")
    run = RunDirectory(run_dir)
    folder = run.checkpoint(checkpoint)
    detector, config = load_detector(run_dir, folder)
    source = {"run": run.path.resolve().name, "checkpoint": folder.name, "weights": "ema"}
    manifest = manifests.describe(config, _class_list(run, config), source)
    with replacing_folder(output) as directory:
        _write_files(detector, config, directory, manifest, formats, dtype, report)
        manifests.write(directory, manifest)
        _verify_files(detector, config, directory, manifest, formats, report)
        manifests.write(directory, manifest)
    return manifest


def _write_files(detector, config, directory, manifest, formats, dtype, report) -> None:
    interface, time = manifests.interface(config), verify.traced_time(detector)
    facts = {"dtype": dtype, **interface}
    write_weights(directory / WEIGHTS, detector.state_dict())
    manifests.add_file(manifest, directory / WEIGHTS, "safetensors", **facts)
    for name in formats:
        path = directory / FORMATS[name][0]
        report(f"writing {path.name}")
        # Imported when asked for: each needs packages that the other does not.
        writer = importlib.import_module(f"rdfa.deploy.{name}")
        if name == "onnx":
            writer.export(detector, path, manifest, interface, time)
            manifests.add_file(manifest, path, name, **facts)
        elif name == "torchscript":
            writer.export(detector, path, manifest, config.post, time)
            manifests.add_file(manifest, path, name, **facts)
        else:
            writer.export(detector, path, time)
            processor = torch.backends.cpu.get_cpu_capability()
            manifests.add_file(manifest, path, name, processor=processor, **facts)
    if NATIVE.intersection(formats):
        natives = {"library": library.path(), "cubins": library.pack_path()}
        for file_format, path in natives.items():
            if file_format == "library" or path.exists():  # without the pack, the library serves CPUs alone
                shutil.copyfile(path, directory / path.name)
                manifests.add_file(manifest, directory / path.name, file_format)


def _verify_files(detector: Detector, config: Config, directory: Path, manifest, formats, report) -> None:
    """Fill in ``parity`` of each file; raises RunError naming the first size at which one fails."""
    checked = {WEIGHTS: "eager"} | {FORMATS[name][0]: FORMATS[name][1] for name in formats}
    sessions = {name: runtime.load(directory, backend) for name, backend in checked.items()}
    for batch, time in verify.sizes(detector):
        report(f"checking batch {batch}, time {time}")
        case = verify.make_case(detector, config, batch, time)
        for name, session in sessions.items():
            row = verify.check(session, case, config)
            if not row.ok:
                raise RunError(
                    f"{name} gives other outputs than the detector at batch {batch}, time {time}: max |d| "
                    f"{row.parity.max_abs:.2g}, relative L2 {row.parity.relative_l2:.2g}, {row.detections:.1%} of the "
                    "detections equal; nothing was written: report this with the run's config.gin"
                )
            manifest["files"][name].setdefault("parity", []).append(row.as_dict())


def _class_list(run: RunDirectory, config: Config) -> list[str]:
    """Class names by index; a class the run has no name for is called by its number."""
    names = AGNOSTIC_NAMES if config.dataset.class_agnostic else run.class_names()
    return [names.get(label, f"class_{label}") for label in range(config.model.cls_head.num_classes)]


def _is_artifact(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()
