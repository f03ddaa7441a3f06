"""`torch.func` and forward mode: derivatives that the operators do not know are those of the references."""

import pytest
import torch
from torch.autograd import forward_ad

from ops import causal_conv1d, selective_scan
from tests.ops.selective_scan.cases import make

TENSORS = make((2, 5, 3, 9))
WEIGHT = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))


def scan(u, delta):
    tensors = TENSORS | {"u": u, "delta": delta}
    return selective_scan(*tensors.values(), delta_softplus=True).square().sum()


def convolution(x, bias):
    return causal_conv1d(x, WEIGHT, bias.mean((0, 2)), "silu").square().sum()


@pytest.fixture(params=[scan, convolution])
def loss(request):
    return request.param


@pytest.fixture
def inputs():
    return TENSORS["u"].clone(), TENSORS["delta"].clone()


def gradients(loss, inputs):
    leaves = [t.requires_grad_() for t in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


@pytest.mark.parametrize("compiled", [False, True])
def test_grad(loss, inputs, compiled):
    def grad(*inputs):
        return torch.func.grad(loss, argnums=(0, 1))(*inputs)

    grad = torch.compile(grad, backend="aot_eager", fullgraph=True) if compiled else grad
    torch.testing.assert_close(grad(*inputs), gradients(loss, inputs))


@pytest.mark.parametrize("compiled", [False, True])
def test_jvp(loss, inputs, compiled):
    def jvp(*inputs):
        return torch.func.jvp(loss, inputs, inputs)[1]

    jvp = torch.compile(jvp, backend="aot_eager", fullgraph=True) if compiled else jvp
    expected = sum((g * t).sum() for g, t in zip(gradients(loss, inputs), inputs))
    torch.testing.assert_close(jvp(*(t.detach() for t in inputs)), expected)


def test_forward_mode(loss, inputs):
    with forward_ad.dual_level():
        y = loss(forward_ad.make_dual(inputs[0], inputs[0]), inputs[1])
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, (gradients(loss, inputs)[0] * inputs[0]).sum())


def test_gradient_of_a_vmap_and_vmap_of_a_gradient(loss, inputs):
    several = [torch.stack([t, t + 0.5]) for t in inputs]
    grad = torch.func.grad(loss, argnums=(0, 1))
    of_vmap = torch.func.grad(lambda *x: torch.vmap(loss)(*x).sum(), argnums=(0, 1))(*several)
    torch.testing.assert_close(torch.vmap(grad)(*several), of_vmap)
    torch.testing.assert_close(tuple(t[0] for t in of_vmap), gradients(loss, inputs))
