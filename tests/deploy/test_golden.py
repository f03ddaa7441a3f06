"""A published run on its way through the house: converted, exported, and run where nothing of ours is installed."""

import pickle
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
import yaml

import export
from rdfa import cli, convert
from tests.deploy import artifacts
from tests.golden import rebuild

pytestmark = pytest.mark.slow

# Needs numpy and onnxruntime; prints what else of interest it has loaded.
ONNX_ALONE = """
import sys
import numpy as np
import onnxruntime
model, folder = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
inputs = {name: np.load(f"{folder}/{name}.npy") for name in ("features", "mask")}
for output, value in zip(session.get_outputs(), session.run(None, inputs)):
    np.save(f"{folder}/onnx_{output.name}.npy", value)
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "rdfa", "ops", "onnx")))
"""


def write_published_run(folder, case):
    """model.yaml, dataset.yaml and epoch.pt as the published repository leaves them."""
    meta = rebuild.case_meta(case)
    width, classes, backbone = meta["emb_c"], meta["num_classes"], "ResidualSharedBiMambaBackbone"
    head = {"input_dim": width, "feat_dim": width}
    model = {
        "backbone_info": {
            "name": backbone,
            backbone: {
                "EmbeddingModule": {"input_c": meta["input_c"], "emb_c": width},
                "StemModule": {"emb_c": width},
                "BranchModule": {"emb_c": width},
            },
        },
        "neck_info": {"name": meta["neck"], meta["neck"]: {"in_channels": width, "out_channel": width}},
        "head_info": {
            "name": ["PtTransformerClsHead", "PtTransformerRegHead"],
            "PtTransformerClsHead": head | {"num_classes": classes},
            "PtTransformerRegHead": head,
        },
    }
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": model}))
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"dataset": {"bench_info": {"num_classes": classes}}}))
    state = {name: torch.from_numpy(value) for name, value in rebuild.case_state_dict(case).items()}
    checkpoint = {
        "epoch": 49,
        "model": {name: value + 1 for name, value in state.items()} | {"total_ops": torch.zeros(1).double()},
        "model_ema": state,
        "optimizer": {},
        "scheduler": {},
        "mAP": np.float64(0.7),
    }
    torch.save(checkpoint, folder / "epoch.pt", pickle_module=pickle)


@pytest.fixture(scope="module", params=["small_a", "small_c"])
def exported(request, tmp_path_factory):
    """(golden case, artifact folder, folder with features.npy and mask.npy)"""
    folder = tmp_path_factory.mktemp(request.param)
    write_published_run(folder, request.param)
    flags = ["--model_yaml", "model.yaml", "--dataset_yaml", "dataset.yaml", "--checkpoint", "epoch.pt"]
    flags = [flag if flag.startswith("-") else str(folder / flag) for flag in flags]
    assert cli.run(convert.main, [*flags, "--output", str(folder / "run")]) == 0
    assert cli.run(export.main, ["--run_dir", str(folder / "run"), "--output", str(folder / "artifact")]) == 0
    features, mask = rebuild.case_input(rebuild.case_meta(request.param))
    np.save(folder / "features.npy", features)
    np.save(folder / "mask.npy", mask)
    return request.param, folder / "artifact", folder


def assert_golden(case, outputs):
    """Each level within 1e-4 + 1e-4 |golden|; the mask exactly."""
    golden, first = rebuild.load_npz(f"model_{case}"), 0
    for level in range(6):
        last = first + golden[f"mask_{level}"].shape[1]
        np.testing.assert_array_equal(outputs["point_mask"][:, first:last], golden[f"mask_{level}"])
        for name in ("cls_logits", "offsets"):
            value, wanted = outputs[name][:, first:last], golden[f"{name}_{level}"]
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4, err_msg=f"{name} of level {level}")
        first = last
    assert outputs["cls_logits"].shape[1] == first


def test_onnx_in_onnxruntime_alone(exported):
    case, artifact, folder = exported
    assert len(onnx.load(artifact / "detector.onnx").graph.node) < 1300
    command = [sys.executable, "-I", "-c", ONNX_ALONE, str(artifact / "detector.onnx"), str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "[]\n"
    names = ("cls_logits", "offsets", "point_mask")
    assert_golden(case, {name: np.load(folder / f"onnx_{name}.npy") for name in names})


def test_torchscript_in_cpp(exported):
    case, artifact, folder = exported
    features, mask = np.load(folder / "features.npy"), np.load(folder / "mask.npy")
    assert_golden(case, artifacts.run_in_cpp(artifact, features, mask, 25.0, 0.0, folder))
