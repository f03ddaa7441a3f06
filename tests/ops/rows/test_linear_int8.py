"""`linear` with weights in int8: equal to integer products in PyTorch, and no further from them than rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.rows.linear import CHUNK, linear, pack_int8, round_rows, round_weights
from tests.ops.conftest import assert_as_exact
from tests.ops.rows.test_linear import PARTS, SHAPES, make_case

# Without a norm of x, whose last bit decides which way a tie is rounded.
EXACT_PARTS = tuple(name for name in PARTS if name != "in_norm")


def check(x, weight, parts, **more):
    outputs, taps, _ = weight.shape
    operands = round_rows(x), round_weights(weight)
    double = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in parts.items()}
    truth = linear(*(operand.double() for operand in operands), outputs, taps, **double)
    plain = linear(*operands, outputs, taps, **parts)
    y = linear(x, pack_int8(weight), outputs, taps, **parts, **more)
    assert y.dtype == x.dtype and y.is_contiguous()
    for s in range(len(x)):
        end = more["lengths"][s] if "lengths" in more else x.shape[1]
        assert_as_exact("y", y[s, :end], plain[s, :end], truth[s, :end])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_integer_product_is_exact(isa, shape):
    """With values of up to 127 in every chunk all factors are 1, and float32 holds these sums."""
    S, L, K, N, W = shape
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-127, 128, size, generator=g) for size in ((S, L, K), (N, W, K)))
    x[:, :, ::CHUNK] = weight[:, 0, 0] = 127
    truth = linear(x.double(), weight.double(), N, W)
    assert truth.abs().max() < 2**24
    assert torch.equal(linear(x.float(), pack_int8(weight), N, W), truth.float())


@pytest.mark.parametrize("value", [127.0, -127.0])
def test_the_largest_sums_do_not_saturate(isa, value):
    x, weight = torch.full((1, 9, 2 * CHUNK), value), torch.full((20, 3, 2 * CHUNK), 127.0)
    truth = linear(x.double(), weight.double(), 20, 3)
    torch.testing.assert_close(linear(x, pack_int8(weight), 20, 3).double(), truth, rtol=2e-7, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_part_and_all(isa, shape):
    for parts in [(), *((name,) for name in EXACT_PARTS), EXACT_PARTS]:
        check(*make_case(shape, parts))


@settings(max_examples=40, deadline=None)
@given(
    # A norm of very few outputs is mostly rounding.
    shape=st.tuples(
        *(st.integers(least, most) for least, most in ((1, 3), (1, 110), (1, 80), (8, 80))), st.sampled_from([1, 3])
    ),
    layout=st.sampled_from(["rows", "columns", "slices"]),
    parts=st.sets(st.sampled_from(EXACT_PARTS)),
    seed=st.integers(0, 100),
)
def test_any_shape_and_layout(shape, layout, parts, seed):
    x, weight, parts = make_case(shape, parts, seed=seed)
    if layout == "columns":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "slices":
        x = torch.stack([x, x + 1], -1).repeat(1, 1, 2, 1)[:, :, : x.shape[2], 0]
    check(x, weight, parts)


@pytest.mark.parametrize("channels", [37, 800])
def test_norm_of_x(isa, channels):
    """What is rounded is the norm; a tie may fall the other way, by one of 127 steps in one element."""
    x, weight, parts = make_case((2, 37, channels, 20, 1), ("in_norm",))
    truth = linear(round_rows(x, parts["in_norm"]).double(), round_weights(weight).double(), 20)
    torch.testing.assert_close(linear(x, pack_int8(weight), 20, **parts).double(), truth, rtol=1e-3, atol=1e-2)
    unrounded = linear(x.double(), weight.double(), 20, in_norm=parts["in_norm"].double())
    assert 1e-3 < (truth - unrounded).abs().max() < 1e-1


def test_every_row_and_chunk_has_a_range_of_its_own(isa):
    x, weight, _ = make_case((2, 13, 2 * CHUNK + 5, 24, 1), ())
    x *= 10.0 ** torch.arange(-13, 13).reshape(2, 13, 1)
    x[:, :, CHUNK:] *= 1e-6
    for row in range(13):
        check(x[:, row : row + 1], weight, {})


@pytest.mark.parametrize("value", [0.0, 1e-33, 1e-40])
def test_rows_of_nothing(isa, value):
    x, weight, parts = make_case((1, 9, 40, 20, 3), ("bias",))
    x[:, 3:7] = value
    check(x, weight, parts)
    check(x, weight * torch.arange(20)[:, None, None], parts)  # the first output has no weights


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_shows(isa, value):
    x, weight, parts = make_case((1, 9, 40, 20, 1), ("bias",))
    x[0, 4, 17] = value
    y = linear(x, pack_int8(weight), 20, **parts)
    assert y[:, 4].isnan().all() and y[:, [3, 5]].isfinite().all()


def test_rows_without_a_factor_may_hold_anything(isa):
    x, weight, parts = make_case((2, 50, 24, 40, 1), ("bias", "out_norm", "residual"))
    scale = (torch.arange(50) < torch.tensor([[30], [7]])).float()
    poisoned = torch.where(scale[:, :, None] == 0, torch.nan, x)
    results = [linear(rows, pack_int8(weight), 40, **parts, scale=scale) for rows in (x, poisoned)]
    assert torch.equal(*results)


@pytest.mark.parametrize("lengths", [[0, 50], [49, 1], [60, 50]])
def test_sequences_that_end_early(isa, lengths):
    x, weight, parts = make_case((2, 50, 24, 40, 1), ("gate",))
    check(x, weight, parts, lengths=torch.tensor(lengths))


def test_same_bits_whatever_the_number_of_threads_and_the_instruction_set(isa, threads, monkeypatch):
    x, weight, _ = make_case((1, 211, 130, 70, 1), ())
    results = []
    for number in (1, 2, 5):
        threads(number)
        results.append(linear(x, pack_int8(weight), 70))
    monkeypatch.setenv("RDFA_CPU_ISA", "portable")
    results.append(linear(x, pack_int8(weight), 70))
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_opcheck():
    x, weight, parts = make_case((2, 7, 16, 20, 1), PARTS)
    arguments = {name: parts.get(name) for name in PARTS} | {"lengths": torch.tensor([7, 7])}
    torch.library.opcheck(torch.ops.rdfa.linear, (x, pack_int8(weight), 20, 1), arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"outputs": 33}, "weight has shape"),
        ({"x": torch.zeros(2, 7, 16, dtype=torch.bfloat16)}, "weight has dtype"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x, weight, _ = make_case((2, 7, 16, 20, 1), ())
    with pytest.raises(RuntimeError, match=message):
        linear(**({"x": x, "weight": pack_int8(weight), "outputs": 20} | change))
