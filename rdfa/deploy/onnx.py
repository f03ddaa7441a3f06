"""The detector as one ONNX file: standard operators, one ``rdfa::SelectiveScan`` node per FA-Bi-S6 pass, its function.

A runtime that has a native kernel for the node uses it; any other inlines the function, so the file needs nothing
beside it. Batch and time are dynamic. Class names, feature specification and version are in the file's metadata.

The variants differ in the function alone: one with a loop, for CPUs; one without control flow, for GPUs; and one
without functions, for runtimes that know none (OpenVINO). In float16 weights and activations are halves, scans stay in
float32, and inputs and outputs are float32 as ever.
"""

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ops.selective_scan.export import DOMAIN, OPSET, add_functions
from rdfa.deploy.form import NarrowDetector
from rdfa.deploy.onnx_modules import replace_parts
from rdfa.errors import RunError, UsageError
from rdfa.modeling.detector import Detector

try:
    import onnx
    import onnx.inliner
    import onnx_ir.passes.common as ir_passes
    from onnx_ir.passes import Sequential
    from onnxscript.optimizer import fold_constants
except ImportError as error:
    raise UsageError(f"ONNX export needs {error.name}: pip install 'rdfa-s6[onnx]'") from error


class Variant(NamedTuple):
    """body: of the function, see `ops.selective_scan.export`. inlined: whether its nodes stand in the graph itself."""

    body: str
    inlined: bool = False


VARIANTS = {"onnx": Variant("cpu"), "onnx_gpu": Variant("gpu"), "onnx_inlined": Variant("cpu", inlined=True)}


def export(
    detector: Detector,
    paths: dict[str, Path],
    manifest: dict[str, Any],
    interface: dict[str, Any],
    time: int,
    dtype: str = "float32",
) -> None:
    """Trace `detector` once, and write each variant.

    Args:
        paths: file by the name of its variant.
        manifest: its "classes", "features" and "versions" go into the file's metadata.
        interface: names and axes of inputs and outputs (`rdfa.deploy.manifest.interface`).
        time: length of the example that is traced; the file serves every multiple of the coarsest stride.
        dtype: "float32" or "float16".

    Raises:
        RunError: an axis of the graph is not what the interface says.
    """
    detector = copy.deepcopy(detector).eval().to(getattr(torch, dtype))
    replace_parts(detector)
    module = NarrowDetector(detector, torch.float16).eval() if dtype == "float16" else detector
    traced = _trace(module, interface, time)
    _clean(traced, interface)
    traced.producer_name, traced.producer_version = "rdfa", manifest["versions"]["rdfa"]
    facts = {"classes": manifest["classes"], "features": manifest["features"], "rdfa_version": traced.producer_version}
    onnx.helper.set_model_props(traced, {key: _text(value) for key, value in facts.items()})
    for name, path in paths.items():
        model = onnx.ModelProto()
        model.CopyFrom(traced)
        add_functions(model, VARIANTS[name].body, detector.generator.max_frames)
        if VARIANTS[name].inlined:
            model = _inlined(model)
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())


def _inlined(model: "onnx.ModelProto") -> "onnx.ModelProto":
    model = onnx.inliner.inline_local_functions(model)
    for entry in [entry for entry in model.opset_import if entry.domain == DOMAIN]:
        model.opset_import.remove(entry)
    return model


def _trace(detector: nn.Module, interface: dict[str, Any], time: int) -> "onnx.ModelProto":
    stride = detector.settings.coarsest_stride
    batch = torch.export.Dim("batch")
    # The length is a multiple of the coarsest stride by construction, so that no level needs rounding.
    coarse = torch.export.Dim("coarse", max=detector.generator.max_frames // stride)
    features = torch.zeros(2, detector.settings.embedding.input_c, time)
    mask = torch.ones(2, time, dtype=torch.bool)
    with _quiet():
        program = torch.onnx.export(
            detector,
            (features, mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=[value["name"] for value in interface["inputs"]],
            output_names=[value["name"] for value in interface["outputs"]],
            dynamic_shapes=({0: batch, 2: stride * coarse}, {0: batch, 1: stride * coarse}),
            # Its pattern search takes half a minute and gains nothing that a runtime does not do by itself.
            optimize=False,
            verbose=False,
        )
    fold_constants(program.model)
    tidy = (
        ir_passes.IdentityEliminationPass(),
        ir_passes.CommonSubexpressionEliminationPass(),
        ir_passes.RemoveUnusedNodesPass(),
    )
    Sequential(*tidy)(program.model)
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself on every run: renamed axes, its own use of torch, no torchvision."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*The axis name.*will not be used")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
            yield
    finally:
        logger.setLevel(level)


def _clean(model: "onnx.ModelProto", interface: dict[str, Any]) -> None:
    """Name the axes as the contract does, and drop what the exporter notes about the code it traced."""
    for values, specs in ((model.graph.input, interface["inputs"]), (model.graph.output, interface["outputs"])):
        for value, spec in zip(values, specs, strict=True):
            for dim, size in zip(value.type.tensor_type.shape.dim, spec["shape"], strict=True):
                if isinstance(size, str):
                    dim.dim_param = size
                elif dim.dim_value != size:
                    raise RunError(f"axis of {value.name} is {dim.dim_value or dim.dim_param!r}, expected {size}")
            value.ClearField("metadata_props")
    # Shapes of inner values are left to the runtime: the exporter's names for them mean nothing to a reader.
    del model.graph.value_info[:]
    model.graph.name = "detector"
    for item in (model, model.graph, *model.graph.node):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
