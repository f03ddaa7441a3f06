"""`onnx_export`: a model that calls `ops`, as one ONNX file that needs nothing beside it."""

import os
from pathlib import Path
from typing import Any

import torch

from ops import library
from ops.selective_scan.export import OPSET, add_functions


def onnx_export(
    model: torch.nn.Module, args: tuple, path: str | os.PathLike, dynamic_shapes: Any = None, **names: list[str]
) -> None:
    """Write a model that calls `ops.selective_scan` and `ops.causal_conv1d` to the ONNX file `path`.

        dynamic = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("time")},)
        ops.onnx_export(model, (x_BDL,), "model.onnx", dynamic, input_names=["x"], output_names=["y"])

    A scan becomes one node ``rdfa::SelectiveScan``, and the file says in standard operators what the node means: ONNX
    Runtime inlines them, or runs a native kernel of that name where one is registered. A convolution becomes ``Conv``.

    Args:
        args: example inputs of `model`. dynamic_shapes: the axes whose sizes are not those of the example, as
            `torch.export.export` takes them. names: input_names and output_names, as `torch.onnx.export` takes them.

    Raises:
        ImportError: onnx or onnxscript is missing: ``pip install onnx onnxscript``.
        ValueError: a scan returns its last state, which the node does not give.
    """
    library.recording_onnx = True
    try:
        program = torch.export.export(model, args, dynamic_shapes=dynamic_shapes)
    finally:
        library.recording_onnx = False
    exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)
    proto = exported.model_proto
    add_functions(proto)
    Path(path).write_bytes(proto.SerializeToString())
