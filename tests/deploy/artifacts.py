"""Run directories and artifacts for the tests of export and runtime.

Weights follow the golden rule (`rebuild.parameter`), of sizes at which every part of the detector shows in the outputs;
a fresh initialisation would hide most of it behind layer scales of 1e-4.
"""

import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from filelock import FileLock

import export
from rdfa import cli, deploy, detect, run_dir
from rdfa.config import Config
from rdfa.data.settings import DatasetSettings
from rdfa.deploy import artifact, verify
from rdfa.evaluation.given_set import GivenSet
from rdfa.modeling.detector import Detector, build_detector
from rdfa.modeling.settings import (
    BranchModuleSettings,
    DetectorSettings,
    EmbeddingModuleSettings,
    FPN1DSettings,
    FPNIdentitySettings,
    ModelSettings,
    PointGeneratorSettings,
    PtTransformerClsHeadSettings,
    PtTransformerRegHeadSettings,
    StemModuleSettings,
)
from tests.golden import rebuild

# Exports of tests do not start each file in a process of its own, which takes seconds; one test of test_export does.
TIME_STARTS, artifact._time_starts = artifact._time_starts, lambda *arguments: None
CLASSES = {0: "jump", 2: "throw"}
GPU_DTYPES = ("float32", "float16", "bfloat16")
# (batch, time) at which every format is compared with the detector: none is traced, or checked by these exports.
SIZES = [(1, 2304), (2, 2304), (3, 4608), (1, 32), (5, 2336)]
RUN_TORCHSCRIPT = Path(__file__).parent / "cpp" / "run_torchscript.cpp"
CPP_EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"


def tiny_config(neck: str = "FPNIdentity") -> Config:
    """Two levels, one pass of the stem: every kind of part, as few nodes as possible."""
    ranges = ((0.0, 4.0), (4.0, 10000.0))
    # Long enough for the sizes that export checks, though trained on 64 steps.
    generator = PointGeneratorSettings(max_seq_len=64, max_buffer_len_factor=72.0, regression_range=ranges)
    model = _settings(6, 8, 3, neck, stem={"recurrent": 1}, branch={"block_n": 1}, generator=generator)
    return Config(model=model, dataset=DatasetSettings(num_classes=3, max_seq_len=64))


def golden_config(case: str) -> Config:
    """The configuration of a small golden case."""
    meta = rebuild.case_meta(case)
    model = _settings(meta["input_c"], meta["emb_c"], meta["num_classes"], meta["neck"])
    return Config(model=model, dataset=DatasetSettings(num_classes=meta["num_classes"]))


def tiny_detector(config: Config) -> Detector:
    detector = build_detector(config.model)
    state = {
        name: torch.from_numpy(rebuild.parameter(name, value.shape, 7)) for name, value in detector.state_dict().items()
    }
    detector.load_state_dict(state)
    return detector.eval()


def golden_detector(case: str) -> Detector:
    detector = build_detector(golden_config(case).model)
    detector.load_state_dict({name: torch.from_numpy(value) for name, value in rebuild.case_state_dict(case).items()})
    return detector.eval()


def write_run(path: Path, detector: Detector, config: Config) -> Path:
    """A run directory with one checkpoint, whose averaged weights are those of `detector`."""
    run_dir.write_config(path, config, CLASSES)
    untrained = build_detector(config.model).state_dict()
    run_dir.write_checkpoint(path, 3, untrained, detector.state_dict(), {"epoch": 1})
    run_dir.point(path, "latest", 3)
    return path


@functools.cache
def _alone() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="rdfa_tests_")


def _folder() -> str:
    """The test session's, or one of this process where there is no session."""
    return os.environ.get("RDFA_TEST_FOLDER") or _alone().name


def shared(build):
    """Calls `build(path, ...)` once for all processes of a test session; the path is what a call then returns."""

    @functools.cache
    def path(*arguments) -> Path:
        made = Path(_folder(), "_".join([build.__name__, *(Path(a).stem for a in arguments)]))
        with FileLock(made.with_suffix(".lock")):
            if not made.exists():
                unfinished = made.with_suffix(".unfinished")
                build(unfinished, *arguments)
                unfinished.rename(made)
        return made

    return path


@shared
def tiny_run(output):
    """A run directory of the tiny detector, shared by all tests of a session: do not write into it."""
    config = tiny_config()
    write_run(output, tiny_detector(config), config)


@shared
def tiny_artifact(output):
    """The artifact of `tiny_run` in the default formats, shared likewise."""
    deploy.export(tiny_run(), output)


@shared
def annotated_videos(output):
    """Three videos whose ground truth is something that the tiny detector finds, moved a little."""
    output.mkdir()
    database, rng = {}, np.random.default_rng(3)
    for name in ("v1", "v2", "v3"):
        np.save(output / f"{name}.npy", rng.standard_normal((40, 6)).astype(np.float32))
        database[name] = {"subset": "Test", "duration": 20.0, "fps": 10.0, "annotations": []}
    path, found = output / "annotations.json", output / "found.json"
    path.write_text(json.dumps({"version": "x", "database": database}))
    flags = ["--artifact", tiny_artifact(), "--backend", "eager", "--features", output, "--annotations", path]
    detect.main([str(f) for f in [*flags, "--subset", "Test", "--output", found]])
    for name, entries in json.loads(found.read_text())["results"].items():
        best = sorted(entries, key=lambda entry: -entry["score"])[:4]
        database[name]["annotations"] = [
            {"label": e["label"], "label_id": int(e["label"].rpartition("_")[2]) if "_" in e["label"] else
             ["jump", "throw"].index(e["label"]), "segment": [e["segment"][0], e["segment"][1] + 0.2]}
            for e in best
        ]  # fmt: skip
    path.write_text(json.dumps({"version": "x", "database": database}))


def given_set() -> GivenSet:
    folder = annotated_videos()
    return GivenSet(str(folder / "annotations.json"), (str(folder),), "Test")


@shared
def int8_artifact(output):
    """The TorchScript file of `tiny_run` in int8, with a gate that lets it pass, shared likewise."""
    gate = deploy.MapGate(given_set(), 0.19)
    with mock.patch.object(verify, "SIZES", ((2, 34), (1, 24), (3, 12))):
        deploy.export(tiny_run(), output, formats=["torchscript"], dtypes=["int8"], gate=gate)


@shared
def onnx_artifact(output):
    """The artifact of `tiny_run` with every variant of ONNX in both number formats, shared likewise."""
    with mock.patch.object(verify, "SIZES", ((2, 34), (1, 24), (3, 12))):
        deploy.export(tiny_run(), output, formats=["onnx", "onnx_gpu", "onnx_inlined"], dtypes=["float32", "float16"])


@shared
def aoti_artifact(output):
    """The artifact of `tiny_run` for AOTInductor alone, shared likewise; to compile it takes about half a minute."""
    with mock.patch.object(verify, "SIZES", ((2, 34), (1, 24), (3, 12))):
        deploy.export(tiny_run(), output, formats=["aoti"])


@shared
def narrow_artifact(output):
    """TorchScript files of `tiny_run` in float16 and bfloat16, shared likewise."""
    with mock.patch.object(verify, "SIZES", ((2, 34), (1, 24), (3, 12))):
        deploy.export(tiny_run(), output, formats=["torchscript"], dtypes=["float16", "bfloat16"])


@shared
def artifact_for(output, device):
    """TorchScript and AOTInductor files of `tiny_run` for "cpu" or "cuda" in `GPU_DTYPES`, as export.py writes them,
    shared likewise; to compile them takes minutes."""
    flags = ["--formats", "torchscript,aoti", "--dtype", ",".join(GPU_DTYPES), "--device", device]
    with mock.patch.object(verify, "SIZES", ((2, 34), (1, 24), (3, 12))):
        assert cli.run(export.main, ["--run_dir", str(tiny_run()), "--output", str(output), *flags]) == 0


@functools.cache
def case(batch, time) -> verify.Case:
    """Random features, and what the tiny detector makes of them in float64."""
    config = tiny_config()
    return verify.make_case(tiny_detector(config), config, batch, time)


def assert_right(session, batch, time, dtype):
    """That a session, or anything with its `run`, computes what the tiny detector does, as nearly as `dtype` allows."""
    config, truth = tiny_config(), case(batch, time)
    own = None if dtype == "float32" else verify.own_error(tiny_detector(config), [truth], dtype)
    row = verify.check(session, truth, config, own)
    assert row.ok, f"{row}, PyTorch's own error {own}"
    assert dtype == "float32" or row.parity.relative_l2 > 1e-4, "this cannot have been computed in less than float32"


def _settings(input_c, width, classes, neck, stem=None, branch=None, **groups) -> ModelSettings:
    return ModelSettings(
        detector=DetectorSettings(neck=neck),
        embedding=EmbeddingModuleSettings(input_c=input_c, emb_c=width),
        stem=StemModuleSettings(emb_c=width, **(stem or {})),
        branch=BranchModuleSettings(emb_c=width, **(branch or {})),
        fpn_identity=FPNIdentitySettings(in_channels=width, out_channel=width),
        fpn_1d=FPN1DSettings(in_channels=width, out_channel=width),
        cls_head=PtTransformerClsHeadSettings(input_dim=width, feat_dim=width, num_classes=classes),
        reg_head=PtTransformerRegHeadSettings(input_dim=width, feat_dim=width),
        **groups,
    )


@shared
def cpp_program(program, source):
    """A C++ program of one file, compiled against the installed torch and the headers of the example."""
    root = Path(torch.__file__).parent
    include = [f"-isystem{root / 'include' / path}" for path in ("", "torch/csrc/api/include")]
    include.append(f"-I{CPP_EXAMPLE}")
    # All of them: that for GPUs is found through libtorch, of which nothing is called by name.
    link = [f"-L{root / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    link.append(f"-Wl,-rpath,{root / 'lib'}")
    subprocess.run(["g++", "-std=c++20", "-O0", "-Wall", *include, str(source), *link, "-o", str(program)], check=True)


def run_in_cpp(artifact: Path, features, mask, fps: float, duration: float, folder: Path) -> dict:
    """Outputs, detections and class names as the C++ program gives them for the artifact's TorchScript file."""
    np.save(folder / "features.npy", features)
    np.save(folder / "mask.npy", mask)
    results = folder / "results"
    results.mkdir()
    command = [cpp_program(RUN_TORCHSCRIPT), artifact / "librdfa_ops.so", artifact / "detector.ts.pt"]
    command += [folder / "features.npy", folder / "mask.npy", fps, duration, results]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    outputs = {path.stem: np.load(path) for path in results.iterdir()}
    return outputs | {"classes": answer.stdout.splitlines()}
