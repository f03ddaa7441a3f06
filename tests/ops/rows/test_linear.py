"""`linear`: the C++ kernels against PyTorch in float64, part by part and all together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import library
from ops.rows.linear import linear, pack
from tests.ops.conftest import assert_as_exact

# S, L, K, N, W: odd ones, one of each tile height, several panels, chunks and blocks, a last panel that is half.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 37, 48, 20, 3),
    (3, 12, 33, 48, 1),
    (1, 130, 1600, 68, 3),
    (2, 5, 7, 2, 5),
    (1, 203, 512, 576, 1),
]
PARTS = ("in_norm", "bias", "scale", "out_norm", "relu", "gate", "residual", "keep")


def make_case(shape, parts, dtype=torch.float32, seed=0):
    """x, weight and the keyword arguments `parts`."""
    S, L, K, N, W = shape
    g = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(size, generator=g)

    values = {
        "in_norm": random(2, K),
        "bias": random(N),
        "scale": random(S, L) * (random(S, L) > -0.5),
        "out_norm": random(2, N),
        "relu": True,
        "gate": random(S, N),
        "residual": random(S, L, N).to(dtype),
        "keep": (random(L) > -1).float(),
    }
    x, weight = random(S, L, K).to(dtype), (random(N, W, K) / (W * K) ** 0.5).to(dtype)
    return x, weight, {name: values[name] for name in parts if name != "in_norm" or (W == 1 and K > 1)}


def check(x, weight, parts, **more):
    outputs, taps, _ = weight.shape
    double = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in parts.items()}
    truth = linear(x.double(), weight.double(), outputs, taps, **double)
    plain = linear(x, weight, outputs, taps, **parts)
    y = linear(x, pack(weight), outputs, taps, **parts, **more)
    assert y.dtype == x.dtype and y.is_contiguous()
    for s in range(len(x)):
        end = more["lengths"][s] if "lengths" in more else x.shape[1]
        assert_as_exact("y", y[s, :end], plain[s, :end], truth[s, :end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_part_and_all(isa, shape, dtype):
    for parts in [(), *((name,) for name in PARTS), PARTS]:
        check(*make_case(shape, parts, dtype))


def test_bfloat16_without_its_instruction_is_the_same_product(monkeypatch):
    x, weight, parts = make_case((1, 40, 96, 70, 3), ("bias",), torch.bfloat16)
    results = []
    for isa in ("", "avx2"):
        monkeypatch.setenv("RDFA_CPU_ISA", isa)
        results.append(linear(x, pack(weight), 70, 3, **parts).float())
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (3, 110, 80, 80)), st.sampled_from([1, 3])),
    layout=st.sampled_from(["rows", "columns", "slices"]),
    parts=st.sets(st.sampled_from(PARTS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 100),
)
def test_any_shape_and_layout(shape, layout, parts, dtype, seed):
    x, weight, parts = make_case(shape, parts, dtype, seed)
    if layout == "columns":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "slices":
        x = torch.stack([x, x + 1], -1).repeat(1, 1, 2, 1)[:, :, : x.shape[2], 0]
    check(x, weight, parts)


def test_rows_without_a_factor_may_hold_anything(isa):
    x, weight, parts = make_case((2, 50, 24, 40, 1), ("bias", "out_norm", "residual"))
    scale = (torch.arange(50) < torch.tensor([[30], [7]])).float()
    x = torch.where(scale[:, :, None] == 0, torch.nan, x)
    check(x, weight, parts | {"scale": scale})


@pytest.mark.parametrize("lengths", [[0, 50], [49, 1], [12, 13], [60, 50]])
def test_sequences_that_end_early(isa, lengths):
    x, weight, parts = make_case((2, 50, 24, 40, 1), ("in_norm", "gate"))
    check(x, weight, parts, lengths=torch.tensor(lengths))


def test_a_norm_longer_than_the_kernels_reach():
    check(*make_case((1, 3, 800, 5, 1), ("in_norm",)))


def test_rows_with_nearly_no_variance_and_a_large_mean(isa):
    x, weight, _ = make_case((1, 9, 64, 8, 1), ())
    check(100 + 1e-2 * x, weight, {"in_norm": torch.ones(2, 64)})


def test_same_bits_whatever_the_number_of_threads(isa, threads):
    x, weight, parts = make_case((1, 211, 130, 70, 3), PARTS)
    results = []
    for number in (1, 2, 5):
        threads(number)
        results.append(linear(x, pack(weight), 70, 3, **parts))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_opcheck():
    x, weight, parts = make_case((2, 7, 16, 20, 1), PARTS)
    arguments = {name: parts.get(name) for name in PARTS} | {"lengths": torch.tensor([7, 7])}
    torch.library.opcheck(torch.ops.rdfa.linear, (x, pack(weight), 20, 1), arguments)


def test_gradient_is_refused():
    x, weight, _ = make_case((1, 3, 4, 5, 1), ())
    with pytest.raises(NotImplementedError, match="inference"):
        linear(x.requires_grad_(), pack(weight), 5).sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"outputs": 4}, r"weight has shape \[64\], expected \[64\]|weight has shape"),
        ({"taps": 2}, "taps = 2"),
        ({"bias": torch.zeros(4)}, r"bias has shape \[4\], expected \[20\]"),
        ({"scale": torch.zeros(2, 7, dtype=torch.float64)}, "scale has dtype"),
        ({"residual": torch.zeros(2, 6, 20)}, r"residual has shape \[2, 6, 20\]"),
        ({"lengths": torch.tensor([3, -1])}, "lengths holds -1"),
        ({"x": torch.zeros(2, 7, 16, dtype=torch.bfloat16)}, "weight has dtype"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x, weight, _ = make_case((2, 7, 16, 20, 1), ())
    arguments = {"x": x, "weight": pack(weight), "outputs": 20} | change
    if arguments["outputs"] == 4:
        arguments["weight"] = arguments["weight"][:-1]
    with pytest.raises(RuntimeError, match=message):
        linear(**arguments)


def test_without_the_library_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(library, "loaded", lambda: False)
    x, weight, _ = make_case((1, 3, 4, 5, 1), ())
    with pytest.raises(RuntimeError, match=r"python -m ops\.build"):
        linear(x, pack(weight), 5)
