"""The Triton kernels without a GPU: in the interpreter, and what the compiler makes of them for each architecture."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ops.causal_conv1d import cuda
from tests.ops import triton_tools
from tests.ops.causal_conv1d import cases
from tests.ops.selective_scan.cases import channels_last, contiguous

LAYOUTS = [contiguous, channels_last]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
CAPABILITIES = [80, 86, 89, 90, 100, 120]


@pytest.mark.slow
def test_in_the_interpreter():
    triton_tools.run_interpreted(Path(__file__).with_name("interpreted.py"))


def launch_single(shape=(2, 64, 512), layout=contiguous, dtype=torch.bfloat16, with_bias=True, reverse=False):
    """A function that launches forward and backward."""
    tensors, dy = cases.make(shape, 4, with_bias, dtype)
    x, weight, bias = layout(tensors[0]), tensors[1], tensors[2] if with_bias else None

    def call():
        cuda.forward(x, weight, bias, True, reverse)
        cuda.backward(layout(dy), x, weight, bias, True, reverse)

    return call


def launch_bidirectional(dtype):
    x, weights, biases, du = cases.make_bidirectional((2, 64, 512), (2, 3, 4), dtype)

    def call():
        cuda.bidirectional_forward(x, weights, biases)
        cuda.bidirectional_backward(du, x, weights, biases)

    return call


def check_wide(kernels):
    """No spills anywhere; all accesses of sequences take 16 bytes, or 8 where a filter needs no more of them."""
    assert [kernel.name for kernel in kernels] == ["forward_kernel", "backward_kernel", "add_up_kernel"]
    for kernel in kernels:
        assert kernel.stack == 0, f"{kernel.name} spills {kernel.stack} bytes"
    for kernel in kernels[:2]:
        assert kernel.count(r"LDG\S*\.128\b") > 0 and kernel.count(r"STG\S*\.128\b") > 0, kernel.name
    forward = kernels[0]
    assert forward.count("STG") == forward.count(r"STG\S*\.128\b"), "some results are stored in pieces"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_for_every_architecture(layout, capability):
    check_wide(triton_tools.compile_launches(capability, launch_single(layout=layout)))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_bidirectional_compiled_for_every_architecture(capability):
    check_wide(triton_tools.compile_launches(capability, launch_bidirectional(torch.bfloat16)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_for_every_dtype(layout, dtype):
    check_wide(triton_tools.compile_launches(90, launch_single(layout=layout, dtype=dtype, reverse=True)))


def test_bidirectional_compiled_in_float32():
    check_wide(triton_tools.compile_launches(90, launch_bidirectional(torch.float32)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_that_do_not_fit_accesses_compile_without_spills_and_without_shared_memory_in_the_forward(layout):
    kernels = triton_tools.compile_launches(90, launch_single((2, 67, 129), layout, with_bias=False))
    assert all(kernel.stack == 0 for kernel in kernels)
    assert kernels[0].shared == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_kernel_for_all_sizes(layout):
    """Sizes that are 1, that are multiples of 16 and that are neither, in every place: Triton would specialise each."""

    def call():
        for shape in [(2, 64, 512), (1, 8, 8), (3, 24, 1000), (16, 40, 264)]:
            launch_single(shape, layout)()

    kernels = triton_tools.compile_launches(90, call)
    assert len({kernel.cubin for kernel in kernels}) == 3
