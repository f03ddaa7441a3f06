"""An artifact as a model repository of the Triton Inference Server.

    DIR/README.md                       the command that starts the server
    DIR/rdfa_torchscript/config.pbtxt   for the backend of pytorch_libtorch
    DIR/rdfa_torchscript/1/             model.pt, and librdfa_ops.so, which the server must preload; librdfa_ops.cubins
    DIR/rdfa_onnx/config.pbtxt          for the backend of onnxruntime_onnx
    DIR/rdfa_onnx/1/model.onnx
    DIR/rdfa_aoti/config.pbtxt          for the backend of torch_aoti (AOTInductor, from release 26.03 on)
    DIR/rdfa_aoti/1/model.pt2
    DIR/*/warmup/mask                   input of the warm-up

A model takes and gives what the manifest says of its file; its client decodes. The server batches requests of equal
length. Models run where the artifact's files were exported for.
"""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from rdfa.errors import UsageError
from rdfa.files import check_replaceable, replacing_folder
from rdfa.runtime import manifest as manifests

MAX_BATCH = 8
# How long a request waits for others of its length: little beside the tenths of a second that a video takes.
QUEUE_DELAY_US = 2000
README, CONFIG, WARMUP_MASK = "README.md", "config.pbtxt", "mask"
TYPES = {"float32": "TYPE_FP32", "bool": "TYPE_BOOL"}


class Model(NamedTuple):
    """How the server runs a format of the artifact."""

    name: str
    platform: str
    backend: str
    file: str
    # The server's name of an input or output, given the manifest's and its position.
    input_name: str
    output_name: str
    warmups: int  # runs at one size until the backend has settled


MODELS = {
    # TorchScript specialises itself during its first runs. Its outputs have no names: the server goes by the number.
    "torchscript": Model("rdfa_torchscript", "pytorch_libtorch", "pytorch", "model.pt", "{name}", "{name}__{index}", 3),
    "onnx": Model("rdfa_onnx", "onnxruntime_onnx", "onnxruntime", "model.onnx", "{name}", "{name}", 1),
    # Neither has names in an AOTInductor package.
    "aoti": Model("rdfa_aoti", "torch_aoti", "pytorch", "model.pt2", "INPUT__{index}", "OUTPUT__{index}", 1),
}
NATIVE = (MODELS["torchscript"], MODELS["aoti"])  # run on the operator library


def check(repository: str | os.PathLike) -> None:
    """Before long work: raises UsageError where `write` would, for want of tritonclient or because of `repository`."""
    _protobuf()
    check_replaceable(Path(repository), _is_ours, "a model repository of this program")


def write(artifact: str | os.PathLike, repository: str | os.PathLike) -> list[str]:
    """Make the model repository of an artifact directory, or replace it; whole or not at all.

    Returns:
        The names of its models, one for each format that the artifact has and the server runs.

    Raises:
        UsageError: no artifact, or one without such a format; `repository` holds other things than this function
            writes; tritonclient is missing.
        RunError: a file differs from the manifest.
    """
    check(repository)
    manifest = manifests.read(artifact)
    models = {file: model for kind, model in MODELS.items() if (file := manifests.find(manifest, kind))}
    if not models:
        raise UsageError(
            f"{os.fspath(artifact)} has no file that the server runs: export --formats torchscript,onnx,aoti"
        )
    native = next((model for model in models.values() if model in NATIVE), None)
    library = manifests.find(manifest, "library") if native else None
    pack = manifests.find(manifest, "cubins") if native else None  # which the library looks for beside itself
    natives = [name for name in (library, pack) if name]
    manifests.verify(artifact, manifest, [*models, *natives])
    with replacing_folder(Path(repository)) as directory:
        for file, model in models.items():
            folder = directory / model.name
            for name in ("1", "warmup"):
                (folder / name).mkdir(parents=True)
            shutil.copyfile(Path(artifact) / file, folder / "1" / model.file)
            (folder / CONFIG).write_text(config_text(manifest, file, model), encoding="utf-8")
            (folder / "warmup" / WARMUP_MASK).write_bytes(b"\1" * manifest["features"]["max_seq_len"])
        for name in natives:
            shutil.copyfile(Path(artifact) / name, directory / native.name / "1" / name)
        preload = f"/models/{native.name}/1/{library}" if library else None
        (directory / README).write_text(_readme(manifest, models, preload), encoding="utf-8")
    return [model.name for model in models.values()]


def config_text(manifest: dict[str, Any], file: str, model: Model) -> str:
    """config.pbtxt of one file of the artifact: a ModelConfig in protobuf's text format."""
    entry = manifest["files"][file]
    inputs, outputs = _renamed(entry["inputs"], model.input_name), _renamed(entry["outputs"], model.output_name)
    config = _protobuf().ModelConfig(
        name=model.name,
        platform=model.platform,
        backend=model.backend,
        default_model_filename=model.file,
        max_batch_size=MAX_BATCH,
        input=list(inputs.values()),
        output=list(outputs.values()),
        dynamic_batching={"max_queue_delay_microseconds": QUEUE_DELAY_US},
        # One, which uses all cores: the backends compute one batch with many threads.
        instance_group=[{"kind": "KIND_GPU" if _on_gpu(entry) else "KIND_CPU", "count": 1}],
        model_warmup=[_warmup(inputs, manifest["features"], batch, model) for batch in (1, MAX_BATCH)],
    )
    text_format = importlib.import_module("google.protobuf.text_format")
    return text_format.MessageToString(config, as_utf8=True)


def _renamed(tensors: list[dict[str, Any]], pattern: str) -> dict[str, dict[str, Any]]:
    """The server's tensors under the manifest's names.

    The batch, first in the manifest's shapes, is no part of the server's; a dynamic axis is -1 there.
    """
    renamed = {}
    for index, tensor in enumerate(tensors):
        dims = [size if isinstance(size, int) else -1 for size in tensor["shape"][1:]]
        name = pattern.format(name=tensor["name"], index=index)
        renamed[tensor["name"]] = {"name": name, "data_type": TYPES[tensor["dtype"]], "dims": dims}
    return renamed


def _on_gpu(entry: dict[str, Any]) -> bool:
    return entry.get("device", "cpu") != "cpu"


def _warmup(inputs: dict[str, dict[str, Any]], spec: dict[str, Any], batch: int, model: Model) -> dict[str, Any]:
    """`batch` requests of the commonest length at once; every clip is real, and its features are zero."""
    samples = {}
    for name, tensor in inputs.items():
        dims = [spec["max_seq_len"] if size == -1 else size for size in tensor["dims"]]
        source = {"input_data_file": WARMUP_MASK} if name == "mask" else {"zero_data": True}
        samples[tensor["name"]] = {"data_type": tensor["data_type"], "dims": dims, **source}
    return {"name": f"batch of {batch}", "batch_size": batch, "inputs": samples, "count": model.warmups}


def _readme(manifest: dict[str, Any], models: dict[str, Model], library: str | None) -> str:
    """`models` by the artifact's file names; `library`: where the server finds the operators."""
    spec, names = manifest["features"], ", ".join(model.name for model in models.values())
    start, notes = "tritonserver --model-repository=/models", ""
    if library:
        start = f"LD_LIBRARY_PATH=/opt/tritonserver/backends/pytorch:$LD_LIBRARY_PATH LD_PRELOAD={library} exec {start}"
        kinds = " and ".join(model.name for model in models.values() if model in NATIVE)
        notes = (
            f"\n{kinds}: on operators of their own, in a library that the server must preload. The library works with\n"
            "the libtorch of PyTorch 2.11 to 2.13: choose the server's release by that.\n"
        )
    if MODELS["aoti"] in models.values():
        notes += (
            f"{MODELS['aoti'].name} is machine code for the libtorch of PyTorch {manifest['versions']['torch']}; it "
            "asks for release 26.03 or later.\n"
        )
    on_gpu = any(_on_gpu(manifest["files"][file]) for file in models)
    gpus = "--gpus=all " if on_gpu else ""
    tensors = "".join(
        f"- {model.name}: {', '.join(_names(manifest['files'][file]['inputs'], model.input_name))} -> "
        f"{', '.join(_names(manifest['files'][file]['outputs'], model.output_name))}\n"
        for file, model in models.items()
    )
    return f"""# Model repository for the Triton Inference Server

Models: {names}. In this folder, with RELEASE a release of the server:

```
docker run --rm {gpus}-p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD:/models:ro" \\
    nvcr.io/nvidia/tritonserver:RELEASE-py3 bash -c '{start}'
```
{notes}
Requests: `features` float32 [batch, {spec["dimension"]}, time] and `mask` bool [batch, time], True on the clips of the
video. Features are padded at the end with {spec["padding_value"]:g} to {spec["max_seq_len"]} time steps, longer ones
to the next multiple of {spec["multiple"]}. Requests of the same length are computed together, up to {MAX_BATCH}.
Answers: class logits, offsets, and the mask of the points, to be decoded into detections. The names of the tensors:

{tensors}"""


def _names(tensors: list[dict[str, Any]], pattern: str) -> list[str]:
    return [tensor["name"] for tensor in _renamed(tensors, pattern).values()]


def _is_ours(folder: Path) -> bool:
    """Nothing in it but what `write` writes: a repository may hold models of others."""
    return {path.name for path in folder.iterdir()} <= {README, *(model.name for model in MODELS.values())}


def _protobuf() -> Any:
    """Imported when asked for: it needs gRPC, which nothing else here does."""
    try:
        return importlib.import_module("tritonclient.grpc.model_config_pb2")
    except ImportError as error:
        raise UsageError(
            f"a model repository is written with tritonclient, which is missing ({error}): "
            "pip install 'rdfa-s6[triton_server]'"
        ) from error
