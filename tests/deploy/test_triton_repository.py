"""The model repository for Triton Inference Server: read back as the server reads it, compared with the files in it."""

import json
import math
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import torch

import export
from ops import library
from rdfa import cli, deploy
from rdfa.deploy import manifest as manifests
from rdfa.deploy import triton_repository
from rdfa.errors import RunError, UsageError
from tests.deploy import artifacts

ONNX_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(bool)": "TYPE_BOOL"}
MODELS = {"rdfa_torchscript", "rdfa_onnx"}


@pytest.fixture(scope="module")
def protobuf():
    reason = "tritonclient is not installed: pip install 'rdfa-s6[triton_server]'"
    return pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)


@pytest.fixture(scope="module")
def repository(protobuf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server") / "models"
    assert set(triton_repository.write(artifacts.tiny_artifact(), folder)) == MODELS
    return folder


@pytest.fixture(scope="module")
def configs(protobuf, repository):
    from google.protobuf import text_format

    texts = {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}
    return {name: text_format.Parse(text, protobuf.ModelConfig()) for name, text in texts.items()}


def tensors(protobuf, listed):
    return [(tensor.name, protobuf.DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in listed]


def warmup_inputs(folder, sample, names=None):
    """The arrays that the server makes of a warm-up: requests of one video each, batched; by the manifest's names."""
    arrays = {}
    for name, value in sorted(sample.inputs.items()):
        name = names[name] if names else name
        array = np.zeros(tuple(value.dims), np.bool_ if name == "mask" else np.float32)
        if value.input_data_file:
            data = (folder / "warmup" / value.input_data_file).read_bytes()
            assert len(data) == math.prod(value.dims)
            array = np.frombuffer(data, np.bool_).reshape(array.shape)
        arrays[name] = np.stack([array] * sample.batch_size)
    return arrays


def test_holds_the_files_of_the_artifact(repository):
    found = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    files = {"rdfa_torchscript/1/model.pt": "detector.ts.pt", "rdfa_torchscript/1/librdfa_ops.so": "librdfa_ops.so"}
    files["rdfa_onnx/1/model.onnx"] = "detector.onnx"
    if library.pack_path().exists():  # an optional build
        files["rdfa_torchscript/1/librdfa_ops.cubins"] = "librdfa_ops.cubins"
    written = {f"{model}/{name}" for model in MODELS for name in ("config.pbtxt", "warmup/mask")}
    assert found == {*files, *written, "README.md"}
    for copy, original in files.items():
        assert (repository / copy).read_bytes() == (artifacts.tiny_artifact() / original).read_bytes()


def test_gpu_kernels_lie_beside_the_library(tmp_path):
    """Which finds them there: a server has no Triton compiler."""
    folder = shutil.copytree(artifacts.tiny_artifact(), tmp_path / "artifact")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "librdfa_ops.cubins").write_bytes(b"kernels")
    manifests.add_file(manifest, folder / "librdfa_ops.cubins", "cubins")
    manifests.write(folder, manifest)
    triton_repository.write(folder, tmp_path / "models")
    beside = tmp_path / "models" / "rdfa_torchscript" / "1" / "librdfa_ops.so"
    assert beside.exists() and beside.with_suffix(".cubins").read_bytes() == b"kernels"


@pytest.mark.parametrize(
    "name, platform", [("rdfa_torchscript", "pytorch_libtorch"), ("rdfa_onnx", "onnxruntime_onnx")]
)
def test_configuration(protobuf, repository, configs, name, platform):
    config = configs[name]
    assert (config.name, config.platform) == (name, platform)
    assert (repository / name / "1" / config.default_model_filename).is_file()
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    (group,) = config.instance_group
    assert (group.kind, group.count) == (protobuf.ModelInstanceGroup.KIND_CPU, 1)
    assert [sample.batch_size for sample in config.model_warmup] == [1, config.max_batch_size]


def test_onnx_tensors_are_those_of_the_file(protobuf, repository, configs):
    session = onnxruntime.InferenceSession(repository / "rdfa_onnx" / "1" / "model.onnx")

    def of_file(values):
        dims = ([size if isinstance(size, int) else -1 for size in value.shape[1:]] for value in values)
        return [(value.name, ONNX_TYPES[value.type], shape) for value, shape in zip(values, dims)]

    config = configs["rdfa_onnx"]
    assert tensors(protobuf, config.input) == of_file(session.get_inputs())
    assert tensors(protobuf, config.output) == of_file(session.get_outputs())


def test_torchscript_tensors_are_those_of_the_file(protobuf, repository, configs):
    """Inputs go by the names of forward's arguments, outputs by the number at the end of theirs."""
    config = configs["rdfa_torchscript"]
    module = torch.jit.load(repository / "rdfa_torchscript" / "1" / "model.pt")
    arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
    assert [tensor.name for tensor in config.input] == arguments
    outputs = module(torch.zeros(2, 6, 64), torch.ones(2, 64, dtype=torch.bool))
    for index, (tensor, name) in enumerate(zip(config.output, outputs._fields, strict=True)):
        assert tensor.name == f"{name}__{index}"
        assert list(tensor.dims)[1:] == list(outputs[index].shape[2:])
    assert tensors(protobuf, config.input) == tensors(protobuf, configs["rdfa_onnx"].input)


@pytest.mark.slow
def test_aoti_package(protobuf, tmp_path):
    """Tensors go by their position, as the package has no names; the warm-ups run."""
    from google.protobuf import text_format

    artifact = artifacts.aoti_artifact()
    assert triton_repository.write(artifact, tmp_path / "models") == ["rdfa_aoti"]
    folder = tmp_path / "models" / "rdfa_aoti"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), protobuf.ModelConfig())
    assert (config.platform, config.backend, config.default_model_filename) == ("torch_aoti", "pytorch", "model.pt2")
    assert [tensor.name for tensor in config.input] == ["INPUT__0", "INPUT__1"]
    assert [tensor.name for tensor in config.output] == ["OUTPUT__0", "OUTPUT__1", "OUTPUT__2"]
    assert config.instance_group[0].kind == protobuf.ModelInstanceGroup.KIND_CPU
    for name, original in {"model.pt2": "detector.pt2", "librdfa_ops.so": "librdfa_ops.so"}.items():
        assert (folder / "1" / name).read_bytes() == (artifact / original).read_bytes()
    readme = (tmp_path / "models" / "README.md").read_text()
    assert "LD_PRELOAD=/models/rdfa_aoti/1/librdfa_ops.so" in readme and torch.__version__ in readme
    assert "INPUT__0, INPUT__1 -> OUTPUT__0, OUTPUT__1, OUTPUT__2" in readme
    model = torch._C._aoti.AOTIModelPackageLoader(str(folder / "1" / "model.pt2"), "model", False, 1, -1)
    for sample in config.model_warmup:
        names = {"INPUT__0": "features", "INPUT__1": "mask"}
        inputs = [torch.from_numpy(array.copy()) for array in warmup_inputs(folder, sample, names).values()]
        outputs = model.run(inputs)
        for tensor, output in zip(config.output, outputs, strict=True):
            assert len(output) == sample.batch_size
            assert all(size in (-1, real) for size, real in zip(tensor.dims, output.shape[1:], strict=True))


def test_files_for_a_gpu_get_an_instance_on_one(protobuf, tmp_path):
    artifact = shutil.copytree(artifacts.tiny_artifact(), tmp_path / "artifact")
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"]["detector.ts.pt"]["device"] = "cuda"
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    triton_repository.write(artifact, tmp_path / "models")
    kinds = {name: (tmp_path / "models" / name / "config.pbtxt").read_text() for name in MODELS}
    assert "KIND_GPU" in kinds["rdfa_torchscript"] and "KIND_CPU" in kinds["rdfa_onnx"]
    assert "--gpus=all" in (tmp_path / "models" / "README.md").read_text()


def test_warmup_runs(repository, configs):
    for sample in configs["rdfa_onnx"].model_warmup:
        inputs = warmup_inputs(repository / "rdfa_onnx", sample)
        session = onnxruntime.InferenceSession(repository / "rdfa_onnx" / "1" / "model.onnx")
        assert all(len(output) == sample.batch_size for output in session.run(None, inputs))
    module = torch.jit.load(repository / "rdfa_torchscript" / "1" / "model.pt")
    for sample in configs["rdfa_torchscript"].model_warmup:
        inputs = warmup_inputs(repository / "rdfa_torchscript", sample)
        outputs = module(*(torch.from_numpy(inputs[name].copy()) for name in ("features", "mask")))
        assert outputs.cls_logits.isfinite().all() and outputs.point_mask.all()


def test_readme_names_the_command(repository):
    text = (repository / "README.md").read_text()
    assert "LD_PRELOAD=/models/rdfa_torchscript/1/librdfa_ops.so exec tritonserver --model-repository=/models" in text
    assert "[batch, 6, time]" in text and "to 64 time steps" in text


def test_artifact_of_one_format(protobuf, tmp_path):
    artifact = tmp_path / "artifact"
    shutil.copytree(artifacts.tiny_artifact(), artifact)
    manifest = json.loads((artifact / "manifest.json").read_text())
    for name in ("detector.ts.pt", "librdfa_ops.so"):
        del manifest["files"][name]
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    assert triton_repository.write(artifact, tmp_path / "models") == ["rdfa_onnx"]
    assert "LD_PRELOAD" not in (tmp_path / "models" / "README.md").read_text()
    del manifest["files"]["detector.onnx"]
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="no file that the server runs"):
        triton_repository.write(artifact, tmp_path / "models")


def test_is_replaced_whole_but_never_with_models_of_others(protobuf, tmp_path):
    folder = tmp_path / "models"
    (folder / "rdfa_onnx" / "2").mkdir(parents=True)
    triton_repository.write(artifacts.tiny_artifact(), folder)
    assert not (folder / "rdfa_onnx" / "2").exists()
    (folder / "resnet50").mkdir()
    with pytest.raises(UsageError, match="not a model repository of this program"):
        triton_repository.write(artifacts.tiny_artifact(), folder)
    assert (folder / "resnet50").is_dir()


def test_damaged_file_is_refused(protobuf, tmp_path):
    artifact = tmp_path / "artifact"
    shutil.copytree(artifacts.tiny_artifact(), artifact)
    with open(artifact / "detector.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(RunError, match=r"detector\.onnx"):
        triton_repository.write(artifact, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def fake_export(monkeypatch, tmp_path):
    """Stands for `deploy.export`: an artifact without its long work."""
    manifest = json.loads((artifacts.tiny_artifact() / "manifest.json").read_text())

    def copy(run_dir, output, *others):
        shutil.copytree(artifacts.tiny_artifact(), output)
        return manifest

    monkeypatch.setattr(deploy, "export", copy)
    arguments = ["--run_dir", artifacts.tiny_run(), "--output", tmp_path / "out", "--triton_repository"]
    return list(map(str, [*arguments, tmp_path / "models"]))


def test_flag_of_export(protobuf, monkeypatch, tmp_path, capsys):
    assert cli.run(export.main, fake_export(monkeypatch, tmp_path)) == 0
    assert "rdfa_torchscript, rdfa_onnx" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "models").iterdir()} == {*MODELS, "README.md"}


def test_without_tritonclient_the_extra_is_named_before_the_export(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    assert cli.run(export.main, fake_export(monkeypatch, tmp_path)) == 2
    error = capsys.readouterr().err
    assert "pip install 'rdfa-s6[triton_server]'" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
