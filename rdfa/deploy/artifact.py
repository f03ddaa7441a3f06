"""From a run directory to an artifact directory, all or nothing."""

import importlib
import importlib.util
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
from rdfa.deploy import form, map_gate, verify
from rdfa.deploy import manifest as manifests
from rdfa.deploy.map_gate import MapGate
from rdfa.errors import RunError, UsageError
from rdfa.evaluation.given_set import OpenedSet
from rdfa.files import check_replaceable, replacing_folder
from rdfa.inference.fusion import AGNOSTIC_NAMES
from rdfa.modeling.detector import Detector
from rdfa.run_dir import RunDirectory, load_detector, write_weights
from rdfa.runtime import DTYPES
from rdfa.runtime.manifest import MANIFEST, find
from rdfa.runtime.session import Session
from rdfa.settings import nearest


class Format(NamedTuple):
    """file: of the artifact. writer: module of this package. backend: of `rdfa.runtime`, which proves the file.

    library: whether it runs on librdfa_ops.so. dtypes: number formats that it can be written in.
    """

    file: str
    writer: str
    backend: str
    library: bool = False
    dtypes: tuple[str, ...] = ("float32",)

    def file_in(self, dtype: str) -> str:
        """Name of the file in that number format: detector.float16.onnx beside detector.onnx."""
        stem, dot, suffix = self.file.rpartition(".")
        return self.file if dtype == "float32" else f"{stem}.{dtype}{dot}{suffix}"


ONNX_DTYPES = ("float32", "float16")
FORMATS = {
    "torchscript": Format("detector.ts.pt", "torchscript", "torchscript", library=True, dtypes=DTYPES),
    "onnx": Format("detector.onnx", "onnx", "onnxruntime", dtypes=ONNX_DTYPES),
    "onnx_gpu": Format("detector.gpu.onnx", "onnx", "onnxruntime", dtypes=ONNX_DTYPES),
    "onnx_inlined": Format("detector.inlined.onnx", "onnx", "openvino", dtypes=ONNX_DTYPES),
    "aoti": Format("detector.pt2", "aoti", "aoti", library=True, dtypes=DTYPES),
}
DEFAULT_FORMATS = ("torchscript", "onnx")  # aoti compiles C++, which takes a minute or two
DEFAULT_DTYPES = ("float32",)
DEVICES = ("cpu", "cuda")
WEIGHTS = "model.safetensors"


def export(
    run_dir: str | os.PathLike,
    output: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    dtypes: Sequence[str] = DEFAULT_DTYPES,
    report: Callable[[str], None] = lambda step: None,
    device: str = "cpu",
    gate: MapGate | None = None,
) -> dict[str, Any]:
    """Export a run's averaged weights, check every file, and only then put the artifact in place.

    Args:
        checkpoint: as in `RunDirectory.checkpoint`. report: called with one line before each step.
        dtypes: number formats. A format is written in each of them that it has.
        device: where TorchScript and AOTInductor files are to run, "cpu" or "cuda"; ONNX files are bound to none.
        gate: what files in int8 have to pass.

    Returns:
        The manifest; of each checked file ``files[name]["parity"]`` holds the figures, and ``["start"]`` what it takes
        to load it and run it once in a new process.

    Raises:
        UsageError: an unknown format, a dtype that no format of these has, int8 without a gate or for a GPU, no such
            run, videos or device here, or an `output` that is not an artifact to replace.
        RunError: a file does not compute what the detector computes, or does not pass the gate. Nothing is left under
            `output`, or what was there.
    """
    files = _files(formats, dtypes)
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}: valid: {', '.join(DEVICES)}")
    if device == "cuda" and "int8" in dtypes:
        raise UsageError("int8 is for CPUs: leave it out of --dtype for --device cuda")
    map_gate.require(set(dtypes), gate)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' was asked for, but torch finds no GPU here: export on a machine that has one")
    output = Path(output)
    check_replaceable(output, _is_artifact, "an artifact")
    run = RunDirectory(run_dir)
    folder = run.checkpoint(checkpoint)
    detector, config = load_detector(run_dir, folder)
    videos = OpenedSet(gate.given, config) if gate else None
    source = {"run": run.path.resolve().name, "checkpoint": folder.name, "weights": "ema"}
    manifest = manifests.describe(config, _class_list(run, config), source)
    with replacing_folder(output) as directory:
        _write_files(detector, config, directory, manifest, files, report, device)
        manifests.write(directory, manifest)
        sessions = _open_files(directory, manifest, files)
        _verify_files(detector, config, manifest, sessions, report)
        if gate:
            gated = {name: session for name, session in sessions.items() if session.dtype in map_gate.DTYPES}
            map_gate.pass_files(gate, videos, config.post, manifest, sessions[WEIGHTS], gated, report)
        _time_starts(directory, manifest, files, report)
        manifests.write(directory, manifest)
    return manifest


def _files(formats: Sequence[str], dtypes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """File -> (format, dtype) of all that is asked for, in the order of the formats."""
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"unknown format {name!r}: {nearest(name, FORMATS)}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    files = {
        FORMATS[name].file_in(dtype): (name, dtype)
        for name in formats
        for dtype in dtypes
        if dtype in FORMATS[name].dtypes
    }
    for name in formats:
        if name not in {name for name, _ in files.values()}:
            raise UsageError(
                f"{name} has no dtype {', '.join(dtypes)}: it is written in {', '.join(FORMATS[name].dtypes)}"
            )
    for dtype in dtypes if formats else ():
        if dtype not in {dtype for _, dtype in files.values()}:
            raise UsageError(f"no format of {', '.join(formats)} has dtype {dtype}: torchscript and aoti have")
    return files


def _write_files(detector, config, directory, manifest, files, report, device) -> None:
    interface, time = manifests.interface(config), verify.traced_time(config)
    write_weights(directory / WEIGHTS, detector.state_dict())
    manifests.add_file(manifest, directory / WEIGHTS, "safetensors", dtype="float32", **interface)
    for (writer_name, dtype), names in _together(files).items():
        report(f"writing {', '.join(names)}")
        # Imported when asked for: each needs packages that the other does not.
        writer = importlib.import_module(f"rdfa.deploy.{writer_name}")
        path, facts = directory / names[0], {"dtype": dtype, **interface}
        if writer_name == "onnx":
            writer.export(detector, {files[n][0]: directory / n for n in names}, manifest, interface, time, dtype)
        elif writer_name == "torchscript":
            writer.export(form.deployed(detector, dtype, device), path, manifest, config.post, time)
            facts |= {"device": device}
        else:
            writer.export(form.deployed(detector, dtype, device).to(device), path, time, device)
            facts |= {"device": device, "processor": torch.backends.cpu.get_cpu_capability()}
        for name in names:
            manifests.add_file(manifest, directory / name, files[name][0], **facts)
    for kind, path in _natives({name for name, _ in files.values()}).items():
        shutil.copyfile(path, directory / path.name)
        manifests.add_file(manifest, directory / path.name, kind)


def _natives(formats: set[str]) -> dict[str, Path]:
    """The native files that these formats run on, by their own formats; the optional ones where they were built."""
    found = {}
    if any(FORMATS[name].library for name in formats):
        found["library"] = library.path()
    # Inlined files have no node for it.
    if formats & {"onnx", "onnx_gpu"} and library.onnxruntime_path().exists():
        found["onnx_library"] = library.onnxruntime_path()
    # Without this pack the libraries serve CPUs alone.
    served = "library" in found or ("onnx_library" in found and "onnx_gpu" in formats)
    if served and library.pack_path().exists():
        found["cubins"] = library.pack_path()
    return found


def _together(files: dict[str, tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """The files of one writer and dtype together: variants of ONNX share one trace."""
    groups: dict[tuple[str, str], list[str]] = {}
    for file, (name, dtype) in files.items():
        groups.setdefault((FORMATS[name].writer, dtype), []).append(file)
    return groups


def _open_files(directory: Path, manifest: dict[str, Any], files: dict[str, tuple[str, str]]) -> dict[str, Session]:
    sessions = {WEIGHTS: runtime.open_file(directory, WEIGHTS, "eager")}
    for file, (name, _) in files.items():
        backend = _backend(name)
        options = {"native": False} if backend == "onnxruntime" else {}
        device = manifest["files"][file].get("device", "cpu")
        sessions[file] = runtime.open_file(directory, file, backend, device, **options)
    kernels = find(manifest, "onnx_library")
    if kernels:  # what a file computes with the kernels of the library is the library's own proof
        file = next(file for file, (name, _) in files.items() if name in ("onnx", "onnx_gpu"))
        sessions[kernels] = runtime.open_file(directory, file, "onnxruntime")
    return sessions


def _verify_files(detector: Detector, config: Config, manifest, sessions: dict[str, Session], report) -> None:
    """Fill in ``parity`` of each file; raises RunError naming the first size at which one fails."""
    dtypes = {session.dtype for session in sessions.values()}
    report("computing what they should give, in float64")
    cases = [verify.make_case(detector, config, batch, time) for batch, time in verify.sizes(config)]
    limits = {dtype: verify.own_error(detector, cases, dtype) for dtype in dtypes - {"float32"}}
    for case in cases:
        batch, time = case.mask_BT.shape
        report(f"checking batch {batch}, time {time}")
        for file, session in sessions.items():
            row = verify.check(session, case, config, limits.get(session.dtype))
            if not row.ok:
                raise RunError(
                    f"{file} gives other outputs than the detector at batch {batch}, time {time}: max |d| "
                    f"{row.parity.max_abs:.2g}, relative L2 {row.parity.relative_l2:.2g}, {row.detections:.1%} of the "
                    "detections equal; nothing was written: report this with the run's config.gin"
                )
            manifest["files"][file].setdefault("parity", []).append(row.as_dict())


def _backend(name: str) -> str:
    backend = FORMATS[name].backend
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:
        return "onnxruntime"  # which runs every ONNX file
    return backend


def _time_starts(directory: Path, manifest: dict[str, Any], files: dict[str, tuple[str, str]], report) -> None:
    """Fill in ``start`` of each file: what a server waits for. One video of the usual length, default threads.

    Of files for a GPU's ONNX Runtime, and for OpenVINO where it is missing, nothing is known here.
    """
    time = manifest["features"]["max_seq_len"]
    shape = cold_start.Shape(1, time)
    started = {WEIGHTS: ("eager", "float32")}
    for file, (name, dtype) in files.items():
        if name != "onnx_gpu" and _backend(name) == FORMATS[name].backend:
            started[file] = FORMATS[name].backend, dtype
    for file, (backend, dtype) in started.items():
        report(f"timing the start of {file}")
        device = manifest["files"][file].get("device", "cpu")
        start = cold_start.measure(directory, backend, device, None, [shape], dtype)[shape]
        manifest["files"][file]["start"] = {"time": time, **start._asdict()}
    manifest["measured_on"] = environment.summary(environment.describe())


def _class_list(run: RunDirectory, config: Config) -> list[str]:
    """Class names by index; a class the run has no name for is called by its number."""
    names = AGNOSTIC_NAMES if config.dataset.class_agnostic else run.class_names()
    return [names.get(label, f"class_{label}") for label in range(config.model.cls_head.num_classes)]


def _is_artifact(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()
