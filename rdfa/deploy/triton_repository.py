"""An artifact as a model repository of the Triton Inference Server.

    DIR/README.md                       the command that starts the server
    DIR/rdfa_torchscript/config.pbtxt   for the backend of pytorch_libtorch
    DIR/rdfa_torchscript/1/             model.pt, and librdfa_ops.so, which the server must preload
    DIR/rdfa_onnx/config.pbtxt          for the backend of onnxruntime_onnx
    DIR/rdfa_onnx/1/model.onnx
    DIR/*/warmup/mask                   input of the warm-up

A model takes and gives what the manifest says of its file; its client decodes. The server batches requests of equal
length. Models run on the CPU, like the artifact's files.
"""

import importlib
import os
import shutil
from collections.abc import Iterable
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
    output_name: str  # the server's name of an output, given the manifest's and its position
    warmups: int  # runs at one size until the backend has settled


MODELS = {
    # TorchScript specialises itself during its first runs. Its outputs have no names: the server goes by the number.
    "torchscript": Model("rdfa_torchscript", "pytorch_libtorch", "pytorch", "model.pt", "{name}__{index}", 3),
    "onnx": Model("rdfa_onnx", "onnxruntime_onnx", "onnxruntime", "model.onnx", "{name}", 1),
}


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
        raise UsageError(f"{os.fspath(artifact)} has no file that the server runs: export --formats torchscript,onnx")
    library = manifests.find(manifest, "library") if MODELS["torchscript"] in models.values() else None
    manifests.verify(artifact, manifest, [*models, *([library] if library else [])])
    with replacing_folder(Path(repository)) as directory:
        for file, model in models.items():
            folder = directory / model.name
            for name in ("1", "warmup"):
                (folder / name).mkdir(parents=True)
            shutil.copyfile(Path(artifact) / file, folder / "1" / model.file)
            (folder / CONFIG).write_text(config_text(manifest, file, model), encoding="utf-8")
            (folder / "warmup" / WARMUP_MASK).write_bytes(b"\1" * manifest["features"]["max_seq_len"])
        if library:
            shutil.copyfile(Path(artifact) / library, directory / MODELS["torchscript"].name / "1" / library)
        (directory / README).write_text(_readme(manifest["features"], models.values(), library), encoding="utf-8")
    return [model.name for model in models.values()]


def config_text(manifest: dict[str, Any], file: str, model: Model) -> str:
    """config.pbtxt of one file of the artifact: a ModelConfig in protobuf's text format."""
    entry = manifest["files"][file]
    outputs = [
        _tensor({**tensor, "name": model.output_name.format(name=tensor["name"], index=index)})
        for index, tensor in enumerate(entry["outputs"])
    ]
    config = _protobuf().ModelConfig(
        name=model.name,
        platform=model.platform,
        backend=model.backend,
        default_model_filename=model.file,
        max_batch_size=MAX_BATCH,
        input=[_tensor(tensor) for tensor in entry["inputs"]],
        output=outputs,
        dynamic_batching={"max_queue_delay_microseconds": QUEUE_DELAY_US},
        # One, which uses all cores: the backends compute one batch with many threads.
        instance_group=[{"kind": "KIND_CPU", "count": 1}],
        model_warmup=[_warmup(entry["inputs"], manifest["features"], batch, model) for batch in (1, MAX_BATCH)],
    )
    text_format = importlib.import_module("google.protobuf.text_format")
    return text_format.MessageToString(config, as_utf8=True)


def _tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    """The batch, first in the manifest's shapes, is no part of the server's; a dynamic axis is -1 there."""
    dims = [size if isinstance(size, int) else -1 for size in tensor["shape"][1:]]
    return {"name": tensor["name"], "data_type": TYPES[tensor["dtype"]], "dims": dims}


def _warmup(inputs: list[dict[str, Any]], spec: dict[str, Any], batch: int, model: Model) -> dict[str, Any]:
    """`batch` requests of the commonest length at once; every clip is real, and its features are zero."""
    samples = {}
    for tensor in map(_tensor, inputs):
        dims = [spec["max_seq_len"] if size == -1 else size for size in tensor["dims"]]
        source = {"input_data_file": WARMUP_MASK} if tensor["name"] == "mask" else {"zero_data": True}
        samples[tensor["name"]] = {"data_type": tensor["data_type"], "dims": dims, **source}
    return {"name": f"batch of {batch}", "batch_size": batch, "inputs": samples, "count": model.warmups}


def _readme(spec: dict[str, Any], models: Iterable[Model], library: str | None) -> str:
    start = "tritonserver --model-repository=/models"
    preload = ""
    if library:
        path = f"/models/{MODELS['torchscript'].name}/1/{library}"
        start = f"LD_LIBRARY_PATH=/opt/tritonserver/backends/pytorch:$LD_LIBRARY_PATH LD_PRELOAD={path} exec {start}"
        preload = (
            "\nThe TorchScript model runs on operators of its own, in a library that the server must preload. The "
            "library works with\nthe libtorch of PyTorch 2.11 to 2.13: choose the server's release by that.\n"
        )
    names = ", ".join(model.name for model in models)
    return f"""# Model repository for the Triton Inference Server

Models: {names}. In this folder, with RELEASE a release of the server:

```
docker run --rm -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD:/models:ro" \\
    nvcr.io/nvidia/tritonserver:RELEASE-py3 bash -c '{start}'
```
{preload}
Requests: `features` float32 [batch, {spec["dimension"]}, time] and `mask` bool [batch, time], True on the clips of the
video. Features are padded at the end with {spec["padding_value"]:g} to {spec["max_seq_len"]} time steps, longer ones
to the next multiple of {spec["multiple"]}. Requests of the same length are computed together, up to {MAX_BATCH}.
Answers: class logits, offsets, and the mask of the points, to be decoded into detections. The models run on the CPU.
"""


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
