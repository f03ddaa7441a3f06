"""What a row costs beside time: operations and bytes of a call, the part of the machine's peak, energy, file size."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rdfa.bench import detector, flops
from rdfa.bench.backends import detectors
from rdfa.bench.candidates import Candidate, Sweep
from rdfa.bench.cold_start import Shape
from rdfa.bench.nvml import Nvml
from rdfa.bench.results import Row
from rdfa.runtime import manifest as manifests

MB = 2**20
# Of a weight, and of an input or output.
BYTES = {"float32": (4, 4), "float16": (2, 2), "bfloat16": (2, 2), "int8": (1, 4)}
# The driver's energy counter moves on ten times a second: long enough for it to be right to a few percent.
ENERGY_S = 1.0
# Formats by backend and device; a detector of torch is made from the weights in float32.
FILES = {"torchscript": "torchscript", "aoti": "aoti", "openvino": "onnx_inlined"}
ONNX = {"cpu": "onnx", "cuda": "onnx_gpu"}


def fill(rows: Sequence[Row], sweep: Sweep, opened: Sequence[Candidate], peaks: dict[str, Any]) -> None:
    """Complete the columns of the sweep's rows; file sizes of all rows."""
    manifest = manifests.read(sweep.artifact)
    model = detectors.load_weights(sweep.artifact, "counting operations").to(sweep.device)
    parameters, classes = sum(p.numel() for p in model.parameters()), model.settings.cls_head.num_classes
    operations: dict[Shape, int | None] = {}
    for row in rows:
        row.model_mb = _file_mb(row, manifest)
        if row.scenario != detector.SCENARIO or not row.valid:
            continue
        shape = Shape(row.batch, row.time)
        if shape not in operations:
            operations[shape] = _operations(model, shape, sweep)
        of_weight, of_value = BYTES[row.dtype]
        inputs = row.batch * row.time * (sweep.channels * of_value + 1)
        outputs = row.batch * sum(model.level_lengths(row.time)) * (classes + 2) * of_value
        row.compulsory_mb = round((parameters * of_weight + inputs + outputs) / MB, 3)
        if operations[shape] is not None:
            row.gflops = operations[shape] / 1e9
            rate = 1e3 * row.gflops / row.latency_ms["p50"]
            row.percent_of_peak = round(100 * rate / peaks["matmul_gflops"][row.dtype], 2)
    if sweep.device == "cuda" and (nvml := Nvml.open()) is not None:
        _energy([row for row in rows if row.scenario == detector.SCENARIO and row.valid], sweep, opened, nvml)


def _operations(model: torch.nn.Module, shape: Shape, sweep: Sweep) -> int | None:
    with FakeTensorMode(allow_non_fake_inputs=True):  # nothing is computed, and no kernel is compiled for it
        features = torch.empty(shape.batch, sweep.channels, shape.time, device=sweep.device)
        mask = torch.empty(shape.batch, shape.time, dtype=torch.bool, device=sweep.device)
        return flops.count(lambda: model(features, mask))


def _file_mb(row: Row, manifest: dict[str, Any]) -> float | None:
    file_format = ONNX.get(row.device) if row.backend.startswith("onnxruntime") else FILES.get(row.backend)
    dtype = row.dtype if file_format else "float32"
    name = manifests.find(manifest, file_format or "safetensors", dtype)
    return round(manifest["files"][name]["size"] / MB, 3) if name else None


def _energy(rows: Sequence[Row], sweep: Sweep, opened: Sequence[Candidate], nvml: Nvml) -> None:
    backends = {(c.name, c.dtype): c.backend for c in opened}
    # Rows of a shape follow one another; drawing large inputs takes seconds.
    for shape, of_shape in itertools.groupby(rows, lambda row: Shape(row.batch, row.time)):
        inputs = detector.make_inputs(shape, sweep.channels)
        for row in of_shape:
            call = detector.rotating(backends[row.backend, row.dtype], inputs, sweep.resident)
            before, start, calls = nvml.energy_j(), time.perf_counter(), 0
            if before is None:
                return
            while time.perf_counter() - start < ENERGY_S:
                call(calls)
                calls += 1
            row.sm_clock_mhz = nvml.clock_mhz()
            row.energy_j_per_video = round((nvml.energy_j() - before) / (calls * row.batch), 5)
