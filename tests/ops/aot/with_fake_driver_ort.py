"""The kernels for GPUs of the operator library for ONNX Runtime, with a driver that runs them on the CPU. Run by
test_launch.py: the tests of the library and its node with another library, and what only a GPU has."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from ops import build

FOLDER = Path(os.environ["RDFA_FAKE_FOLDER"])
build.ORT_LIBRARY = FOLDER / "ort_on_cpu.so"

from tests.ops.selective_scan import test_export as node  # noqa: E402
from tests.ops.selective_scan.test_ort_library import (  # noqa: E402, F401
    provider,
    test_every_half_comes_in_and_goes_out_right,
    test_nothing_to_do,
    test_number_formats_mix,
    test_wrong_shapes_are_refused,
)

NATIVE = ("cpu", node.run_native)


@pytest.fixture(autouse=True)
def launches(tmp_path):
    """The launches so far: (name, grid x, grid y, threads, shared memory, stream)."""
    log = tmp_path / "launches"
    log.touch()
    os.environ["RDFA_FAKE_LOG"] = str(log)
    return lambda: [line.split() for line in log.read_text().splitlines()]


@pytest.mark.parametrize("shape", [*node.SHAPES, (2, 9, 16, 264, 3), (1, 5, 35, 18, 1)], ids=str)
def test_equals_the_reference(shape):
    node.test_equals_the_reference(NATIVE, shape)


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=5)), ids=str)
def test_every_combination_of_inputs_and_attributes(flags):
    node.test_every_combination_of_inputs_and_attributes(NATIVE, flags)


def test_one_model_serves_every_size():
    node.test_one_model_serves_every_size("cpu", native=True)


def test_time_steps_from_vanishing_to_huge():
    node.test_time_steps_from_vanishing_to_huge(NATIVE)


def test_half_precision_computes_in_float32():
    node.test_half_precision_computes_in_float32(NATIVE)


def test_groups_of_b_and_c_that_differ():
    values = node.make_inputs((2, 6, 4, 20, 3))
    for name in "BC":
        one = values | {name: values[name][:, :1]}
        node.assert_close(node.run_native(node.make_model(), one), node.expected(one))


def test_number_formats_with_more_states_than_a_launch_takes():
    values = node.make_inputs((2, 6, 35, 40, 1))
    half = {name: value.astype(np.float16) for name, value in values.items()}
    y = node.run_native(node.make_model(dtype=TensorProto.FLOAT16), half).astype(np.float32)
    node.assert_close(y, node.expected({name: value.astype(np.float32) for name, value in half.items()}), 5e-4)


@pytest.mark.parametrize("length, form", [(8192, "even"), (8200, "access"), (8193, "any")])
def test_segments(length, form, launches):
    """A slow decay crosses them. Their number follows from the 4 multiprocessors of the fake device."""
    values = node.make_inputs((1, 2, 16, length, 1))
    values |= {"A": 1e-2 * values["A"], "delta": 1e-2 * values["delta"]}
    node.assert_close(node.run_native(node.make_model(), values), node.expected(values))
    names = [launch[0] for launch in launches()]
    scan = f"scan-f32-1x32-{form}-softplus-gated"
    assert names == ["scale", "pack-f32-1x32", f"{scan}-first", "join", f"{scan}-rest"]


def test_halves_stay_halves_on_the_stream_of_the_session(launches):
    values = {k: v.astype(np.float16) for k, v in node.make_inputs((1, 4, 16, 64, 1)).items()}
    node.run_native(node.make_model(dtype=TensorProto.FLOAT16), values)
    names = [launch[0] for launch in launches()]
    # A, D and the bias alone are widened; in a detector they are float32.
    assert names[-2:] == ["pack-f16-1x32", "scan-f16-1x32-access-softplus-gated-whole"]
    assert set(names[:-2]) == {"convert-f16-f32", "scale"}
    assert {launch[5] for launch in launches()} == {"0x5"}
