"""The library's GPU operators with a driver that runs the kernels on the CPU. Run by test_launch.py."""

import ctypes
import itertools
import os
from pathlib import Path

import pytest
import torch

from ops import library
from ops.causal_conv1d.reference import causal_conv1d_reference
from ops.selective_scan.reference import selective_scan_reference
from tests.ops.causal_conv1d import cases as conv_cases
from tests.ops.conftest import assert_as_exact
from tests.ops.selective_scan import cases

library.require()
FOLDER = Path(os.environ["RDFA_FAKE_FOLDER"])
torch.ops.load_library(FOLDER / "on_cpu.so")
operators = torch.ops.rdfa_on_cpu

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
all_dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture(autouse=True)
def launches(monkeypatch, tmp_path):
    """The launches so far: (name, grid x, grid y, threads, shared memory, stream)."""
    log = tmp_path / "launches"
    log.touch()
    os.environ["RDFA_FAKE_LOG"] = str(log)
    return lambda: [line.split() for line in log.read_text().splitlines()]


def check_scan(tensors, softplus=True, reverse=False):
    value = operators.selective_scan(*tensors.values(), softplus, reverse)
    exact = {k: None if t is None else t.double() for k, t in tensors.items()}
    same, truth = (selective_scan_reference(*t.values(), softplus, True, reverse) for t in (tensors, exact))
    for name, *results in zip(("y", "last_state"), value, same, truth):
        assert results[0].dtype == (tensors["u"].dtype if name == "y" else torch.float32)
        assert_as_exact(name, *results)
    fake = library.empty_bdl(tensors["u"])
    assert value[0].stride() == fake.stride() and value[1].is_contiguous()


@all_dtypes
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 17, 3, 65), (2, 9, 16, 264), (1, 5, 35, 18)], ids=str)
def test_scan(shape, layout, reverse, dtype):
    check_scan(cases.make(shape, dtype=dtype, layout=layout), reverse=reverse)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids="-".join)
@pytest.mark.parametrize("kind, groups", [("BGNL", 2), ("DN", 1), ("BLN", 1)])
def test_options(kind, groups, without, softplus):
    tensors = cases.make((2, 6, 4, 70), kind, groups=groups, without=without, delta_shift=-1.0 if softplus else 4.0)
    check_scan(tensors, softplus)


def test_groups_of_b_and_c_that_differ():
    tensors = cases.make((2, 6, 4, 20), "BGNL", groups=3)
    check_scan(tensors | {"C": tensors["C"][:, :1]})
    check_scan(tensors | {"B": cases.make((2, 6, 4, 20), "DN")["B"]})


@pytest.mark.parametrize("name", ["delta", "z", "B", "C"])
def test_mixed_dtypes(name):
    tensors = cases.make((2, 5, 16, 33), dtype=torch.bfloat16)
    check_scan(tensors | {name: tensors[name].float()})
    check_scan(tensors | {name: tensors[name].half()})


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 4, 0), (2, 0, 4, 5)], ids=str)
def test_no_elements(shape, launches):
    check_scan(cases.make(shape))
    assert launches() == []


@pytest.mark.parametrize(
    "length, form, dtype",
    [(8192, "even", "f16"), (8200, "access", "bf16"), (8193, "any", "f32")],
)
def test_segments(length, form, dtype, launches):
    """A slow decay crosses them. Their number follows from the 4 multiprocessors of the fake device."""
    tensors = cases.make((1, 2, 3, length), dtype=DTYPES[dtype], delta_shift=-5.0)
    tensors["A"] = 1e-2 * tensors["A"]
    check_scan(tensors, reverse=form == "any")
    (_, *scans) = launches()
    assert [launch[0] for launch in scans] == [
        f"scan-{dtype}-1x32-{form}-softplus-gated-first", "join", f"scan-{dtype}-1x32-{form}-softplus-gated-rest",
    ]  # fmt: skip
    assert scans[0][1:3] == ["2", "2"]


def test_many_rows_take_another_tile(launches):
    check_scan(cases.make((4, 200, 2, 16)))
    assert launches()[1][0].startswith("scan-f32-32x1-even")


def test_an_address_that_is_no_multiple_of_an_access(launches):
    tensors = cases.make((1, 4, 16, 64))
    shifted = torch.empty(tensors["u"].numel() + 1)[1:].view(tensors["u"].shape).copy_(tensors["u"])
    check_scan(tensors | {"u": shifted})
    assert "-any-" in launches()[1][0]


def test_launches_go_to_the_current_stream_with_the_threads_of_the_kernel(launches):
    check_scan(cases.make((1, 4, 16, 256)))
    assert [launch[3:] for launch in launches()] == [["128", "0", "0x5"], ["32", "0", "0x5"]]


def test_numbers_that_32_bits_do_not_hold_are_refused():
    tensors = cases.make((1, 1, 1, 8))
    with pytest.raises(RuntimeError, match=r"u_d = 4294967296 is more than 32 bits hold: split the batch"):
        operators.selective_scan(
            *(tensors | {"u": tensors["u"].as_strided((1, 1, 8), (8, 2**34, 1))}).values(), True, False
        )


@all_dtypes
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 2), (2, 35, 67), (2, 16, 72), (1, 0, 4)], ids=str)
def test_convolution(shape, layout, dtype):
    for width, silu, reverse in itertools.product((2, 3, 4), (None, "silu"), (False, True)):
        bias = width != 3
        (x, *filters), _ = conv_cases.make(shape, width, bias, dtype)
        x = layout(x)
        weight, offset = filters if bias else (*filters, None)
        value = operators.causal_conv1d(x, weight, offset, silu is not None, reverse)
        same = causal_conv1d_reference(x, weight, offset, silu, reverse)
        exact = (None if t is None else t.double() for t in (x, weight, offset))
        assert value.dtype == dtype and value.stride() == library.empty_bdl(x).stride()
        assert_as_exact("y", value, same, causal_conv1d_reference(*exact, silu, reverse))


def test_wide_accesses_where_they_are_there(launches):
    x = torch.randn(2, 64, 264)
    for given in (x, cases.channels_last(x), x[:, :, 1:], cases.no_unit_stride(x)):
        operators.causal_conv1d(given, torch.randn(64, 4), None, True, False)
    assert [launch[0] for launch in launches()] == [
        f"conv-f32-{tile}-w4-silu-forward" for tile in ("time-wide", "channels-wide", "time-narrow", "time-narrow")
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"u": torch.zeros(1, 2, 3, dtype=torch.float64)}, "u is Double: expected float32, float16 or bfloat16"),
        ({"delta": torch.zeros(1, 2, 4)}, r"delta has shape \[1, 2, 4\], expected \[1, 2, 3\]"),
        ({"B": torch.zeros(1, 3, 4, 3)}, "G a divisor of D = 2"),
        ({"A": torch.zeros(2, 257)}, "N from 1 to 256"),
        ({"D": torch.zeros(3)}, r"D has shape \[3\], expected \[2\]"),
    ],
)
def test_wrong_arguments_of_a_recorded_graph(change, message):
    with pytest.raises(RuntimeError, match=message):
        operators.selective_scan(*(cases.make((1, 2, 4, 3)) | change).values(), True, False)


def test_the_driver_is_the_fake_one():
    assert ctypes.CDLL("libcuda.so.1").cuLaunchKernel is not None
    assert "libcuda.so.1" in Path("/proc/self/maps").read_text()
