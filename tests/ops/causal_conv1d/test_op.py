"""`causal_conv1d` as a torch operator: the reference's gradients, opcheck, compile, trace, export, and wrong inputs."""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ops import causal_conv1d, library
from ops.causal_conv1d.reference import causal_conv1d_reference


def example(B=2, D=5, L=11, W=4, dtype=torch.float32, requires_grad=False):
    g = torch.Generator().manual_seed(1)
    tensors = [torch.randn(size, generator=g).to(dtype) for size in ((B, D, L), (D, W), (D,))]
    return [t.requires_grad_(requires_grad) for t in tensors]


class Convolution(torch.nn.Module):
    def __init__(self, reverse=False):
        super().__init__()
        _, weight, bias = example()
        self.weight, self.bias, self.reverse = torch.nn.Parameter(weight), torch.nn.Parameter(bias), reverse

    def forward(self, x):
        return causal_conv1d(x, self.weight, self.bias, "silu", self.reverse) * 2


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_gradcheck_of_the_reference(width, activation, reverse):
    inputs = example(2, 3, 5, width, torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: causal_conv1d_reference(*t, activation, reverse), inputs)


def test_reference_is_torchs_convolution():
    x, weight, bias = example(dtype=torch.float64)
    expected = torch.nn.functional.conv1d(x, weight[:, None], bias, padding=3, groups=5)[:, :, : x.shape[2]]
    torch.testing.assert_close(causal_conv1d_reference(x, weight, bias), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad, with_bias, channels_last):
    x, weight, bias = example()
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if channels_last else x
    for t in (x, weight, bias):
        t.requires_grad_(requires_grad)
    bias = bias if with_bias else None
    torch.library.opcheck(torch.ops.rdfa.causal_conv1d, (x, weight, bias, True, False))
    detached = [None if t is None else t.detach() for t in (torch.ones_like(x), x, weight, bias)]
    torch.library.opcheck(torch.ops.rdfa.causal_conv1d_backward, (*detached, True, True))


def test_second_derivative_is_refused():
    inputs = example(requires_grad=True)
    (dx,) = torch.autograd.grad(causal_conv1d(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivatives.*reference"):
        dx.sum().backward()


def test_compiled_training_matches_and_is_not_recompiled_for_another_length():
    module = Convolution()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    for length in (11, 29, 64):
        x = example(L=length)[0]
        results = []
        for call in (module, compiled):
            module.zero_grad()
            leaf = x.clone().requires_grad_()
            y = call(leaf)
            y.square().sum().backward()
            results.append((y.detach(), leaf.grad, module.weight.grad.clone(), module.bias.grad.clone()))
        for expected, value in zip(*results):
            torch.testing.assert_close(value, expected)
    assert counter.frame_count == 1


def test_trace_survives_saving_and_another_length():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(Convolution(reverse=True), example()[0]), buffer)
    assert "rdfa::causal_conv1d" in str(torch.jit.load(io.BytesIO(buffer.getvalue())).graph)
    loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
    x = example(B=3, L=31)[0]
    torch.testing.assert_close(loaded(x), Convolution(reverse=True)(x))


def test_export_with_a_dynamic_length():
    dynamic = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("time")}}
    program = torch.export.export(Convolution(), (example()[0],), dynamic_shapes=dynamic)
    x = example(B=3, L=31)[0]
    torch.testing.assert_close(program.module()(x), Convolution()(x))


def test_float16_runs_the_kernel_in_float32():
    inputs = example(dtype=torch.float16)
    y = causal_conv1d(*inputs, "silu", reverse=True)
    wide = causal_conv1d(*(t.float() for t in inputs), "silu", reverse=True)
    assert y.dtype == torch.float16 and torch.equal(y, wide.half())


def test_other_dtypes_use_the_reference():
    inputs = example(dtype=torch.float64)
    assert not library.runs_native(*inputs)
    assert torch.equal(causal_conv1d(*inputs, "silu"), causal_conv1d_reference(*inputs, "silu"))


def test_without_the_library_the_reference_runs(monkeypatch):
    monkeypatch.setattr(library, "_problem", "librdfa_ops.so is not built")
    monkeypatch.setattr(library, "_warned", False)
    inputs = example()
    with pytest.warns(UserWarning, match=r"not built.*python -m ops\.build"):
        y = causal_conv1d(*inputs, "silu")
    assert torch.equal(y, causal_conv1d_reference(*inputs, "silu"))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"activation": "relu"}, ValueError, r"activation = 'relu' is unknown: use None, 'silu' or 'swish'"),
        ({"x": torch.zeros(2, 5)}, ValueError, r"x has shape \[2, 5\]: expected \[B, D, L\]"),
        ({"x": torch.zeros(2, 5, 3, dtype=torch.int64)}, TypeError, "x is torch.int64: expected a real floating-point"),
        ({"x": torch.zeros(2, 5, 3, dtype=torch.complex64)}, TypeError, "x is torch.complex64"),
        ({"x": [1.0]}, TypeError, "x is list"),
        ({"weight": torch.zeros(5, 5)}, ValueError, r"weight has shape \[5, 5\]: expected \[D, W\] = \[5, 2..4\]"),
        ({"weight": torch.zeros(5, 1)}, ValueError, r"expected \[D, W\] = \[5, 2..4\]"),
        ({"weight": torch.zeros(4, 3)}, ValueError, r"weight has shape \[4, 3\]"),
        ({"weight": torch.zeros(5, 3, device="meta")}, ValueError, "weight is on meta, x on cpu"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias has shape \[4\]: expected \[D\] = \[5\]"),
        ({"bias": torch.zeros(5, 1)}, ValueError, r"bias has shape \[5, 1\]"),
    ],
    ids=str,
)
def test_wrong_input_is_refused_in_one_line(change, error, message):
    arguments = dict(zip(("x", "weight", "bias"), example())) | change
    with pytest.raises(error, match=message) as caught:
        causal_conv1d(**arguments)
    assert "\n" not in str(caught.value)


def test_the_operator_itself_checks_what_reaches_it():
    x, weight, bias = example()
    op = torch.ops.rdfa.causal_conv1d
    for arguments, message in [
        ((x.double(), weight, bias), "x must be float32 or bfloat16"),
        ((x[0], weight, bias), r"x has shape \[5, 11\]"),
        ((x, weight[:3], bias), r"weight has shape \[3, 4\], expected \[5, 4\]"),
        ((x, weight, bias[:3]), r"bias has shape \[3\], expected \[5\]"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            op(*arguments, True, False)
    with pytest.raises(RuntimeError, match=r"dy has shape \[2, 5, 10\]"):
        torch.ops.rdfa.causal_conv1d_backward(x[:, :, 1:], x, weight, bias, True, False)
