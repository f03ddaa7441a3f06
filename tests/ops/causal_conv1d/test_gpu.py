"""The kernels on a GPU: against the reference in float64, as torch operators, compiled, and repeated.

Triton's, or with RDFA_GPU_KERNELS=aot those of the pack, which have no gradients.
"""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ops import causal_conv1d, library
from ops.causal_conv1d.bidirectional import bidirectional_conv1d
from ops.causal_conv1d.reference import causal_conv1d_reference
from tests.ops.causal_conv1d import cases
from tests.ops.conftest import assert_as_exact
from tests.ops.selective_scan.cases import channels_last, contiguous

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        not library.HAS_TRITON and not library.pack_path().exists(), reason="neither Triton nor a pack of kernels"
    ),
]
of_triton = pytest.mark.skipif(not library.HAS_TRITON, reason="only Triton's kernels do this")

LAYOUTS = [contiguous, channels_last]
all_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"]
)

# (B, D, L), odd sizes first.
SHAPES = [(1, 1, 1), (2, 3, 2), (3, 5, 7), (2, 67, 129), (1, 33, 100003), (2, 512, 2304), (1, 0, 4), (2, 3, 0)]


def check_single(tensors, dy, activation, reverse):
    assert library.runs_triton(*tensors) or library.runs_aot(*tensors)
    with torch.set_grad_enabled(library.HAS_TRITON):
        value = cases.run(causal_conv1d, tensors, dy, activation, reverse)
        same = cases.run(causal_conv1d_reference, tensors, dy, activation, reverse)
        truth = cases.run(causal_conv1d_reference, cases.doubled(tensors), dy.double(), activation, reverse)
    for name in truth:
        assert value[name].dtype == same[name].dtype
        assert_as_exact(name, value[name], same[name], truth[name])


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, layout, dtype):
    for width, activation, reverse in itertools.product((2, 3, 4), (None, "silu"), (False, True)):
        tensors, dy = cases.make(shape, width, with_bias=True, dtype=dtype, device="cuda")
        check_single([layout(tensors[0]), *tensors[1:]], layout(dy), activation, reverse)


def test_more_than_two_to_the_31_elements():
    """The last channel of the last sequence lies beyond what 32 bits can address."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    x = torch.zeros(2, 1025, 2**20, dtype=torch.bfloat16, device="cuda")
    x[-1, -2:] = torch.randn(2, 2**20, device="cuda").bfloat16()
    weight, bias = (torch.randn(1025, *size, device="cuda").bfloat16() for size in ((4,), ()))
    for layout in LAYOUTS:
        y = causal_conv1d(layout(x), weight, bias, "silu")
        expected = causal_conv1d_reference(x[-1:, -2:], weight[-2:], bias[-2:], "silu")
        torch.testing.assert_close(y[-1:, -2:], expected, rtol=1e-2, atol=1e-2)


@of_triton
@all_dtypes
@pytest.mark.parametrize("widths", [(2, 3, 4), (4,)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 7), (1, 33, 100003), (2, 512, 2304), (0, 3, 4)], ids=str)
def test_bidirectional(shape, widths, dtype):
    x, weights, biases, du = cases.make_bidirectional(shape, widths, dtype, device="cuda")
    value = cases.run_bidirectional(bidirectional_conv1d, x, weights, biases, du)
    same = cases.run_bidirectional(cases.bidirectional_reference, x, weights, biases, du)
    exact = (x.double(), cases.doubled(weights), cases.doubled(biases), du.double())
    truth = cases.run_bidirectional(cases.bidirectional_reference, *exact)
    for name in truth:
        assert value[name].dtype == same[name].dtype
        assert_as_exact(name, value[name], same[name], truth[name])


@of_triton
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    (x, weight, bias), dy = cases.make((2, 5, 11), 4, with_bias=True, dtype=torch.float32, device="cuda")
    x = layout(x)
    torch.library.opcheck(torch.ops.rdfa.causal_conv1d_backward, (dy, x, weight, bias, True, True))
    for t in (x, weight, bias):
        t.requires_grad_()
    torch.library.opcheck(torch.ops.rdfa.causal_conv1d, (x, weight, bias, True, False))


@of_triton
def test_opcheck_of_bidirectional():
    x, weights, biases, du = cases.make_bidirectional((2, 5, 11), (2, 4), torch.float32, device="cuda")
    torch.library.opcheck(torch.ops.rdfa.bidirectional_conv1d_backward, (du, x, weights, biases))
    for t in (x, *weights, *biases):
        t.requires_grad_()
    torch.library.opcheck(torch.ops.rdfa.bidirectional_conv1d, (x, weights, biases))


def kernels_compiled() -> int:
    from ops.causal_conv1d import triton_kernels

    kernels = (triton_kernels.forward_kernel, triton_kernels.backward_kernel, triton_kernels.add_up_kernel)
    return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels)


@of_triton
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_training_is_not_recompiled_for_another_length(layout):
    _, weights, biases, _ = cases.make_bidirectional((1, 16, 1), (2, 3, 4), torch.float32, device="cuda")

    def both(x):
        single = causal_conv1d(x[0], weights[2], biases[2], "silu")
        return single.sum() + bidirectional_conv1d(x, weights, biases).square().sum()

    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(both, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for length in (64, 1000, 2304):
        x = torch.randn(2, 3, 16, length, device="cuda")
        x = x if layout is contiguous else x.transpose(2, 3).contiguous().transpose(2, 3)
        results = []
        for call in (both, compiled):
            leaf = x.clone().requires_grad_()
            loss = call(leaf)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        for expected, value in zip(*results):
            torch.testing.assert_close(value, expected)
        counts.append(kernels_compiled())
    assert counter.frame_count == 1 and counts[0] == counts[-1]


@of_triton
@pytest.mark.parametrize("layout", LAYOUTS)
def test_repeats_to_the_last_bit(layout):
    tensors, dy = cases.make((4, 96, 2304), 4, with_bias=True, dtype=torch.bfloat16, device="cuda")
    tensors[0] = layout(tensors[0])
    x, weights, biases, du = cases.make_bidirectional((4, 96, 2304), (2, 3, 4), torch.bfloat16, device="cuda")

    def once():
        single = cases.run(causal_conv1d, tensors, dy, "silu", False)
        both = cases.run_bidirectional(bidirectional_conv1d, x, weights, biases, du)
        return [*single.values(), *both.values()]

    first = once()
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, once()))
