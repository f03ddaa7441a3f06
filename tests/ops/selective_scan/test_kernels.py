"""The C++ kernels against the reference in float64: values, last state and every gradient, on each instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import selective_scan
from ops.selective_scan.reference import selective_scan_reference
from tests.ops.conftest import assert_as_exact, relative_rms
from tests.ops.selective_scan.cases import LAYOUTS, channels_last, contiguous, make, output_gradients, run

# (B, D, N, L), odd sizes first. 16 steps make a tile; 16, 8 or 4 channels a block; 128 channels a slab.
SHAPES = [
    (1, 1, 1, 1),
    (2, 17, 3, 65),
    (3, 33, 16, 129),
    (2, 48, 20, 7),
    (1, 150, 16, 40),
    (1, 5, 67, 18),
    (1, 3, 256, 5),
]
EMPTY = [(0, 3, 4, 5), (2, 3, 4, 0), (2, 0, 4, 5)]


def check(tensors, dy, dstate, softplus=True, reverse=False, assert_accurate=assert_as_exact):
    value = run(selective_scan, tensors, dy, dstate, softplus, reverse)
    same = run(selective_scan_reference, tensors, dy, dstate, softplus, reverse)
    exact = {k: None if t is None else t.double() for k, t in tensors.items()}
    truth = run(selective_scan_reference, exact, dy, dstate, softplus, reverse)
    assert value.keys() == truth.keys()
    for name in truth:
        assert value[name].dtype == same[name].dtype
        assert_accurate(name, value[name], same[name], truth[name])
    return value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_values_and_gradients(isa, shape, layout, dtype):
    for kind, reverse in (("BNL", False), ("BLN", True)):
        tensors = make(shape, kind, dtype=dtype, layout=layout)
        check(tensors, *output_gradients(shape, dtype), reverse=reverse)


@pytest.mark.parametrize("kind, groups", [("BGNL", 1), ("BGNL", 3), ("BGNL", 33), ("DN", 1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_groups_and_constant_projections(isa, kind, groups, reverse):
    shape = (2, 33, 5, 35)
    check(make(shape, kind, groups), *output_gradients(shape), reverse=reverse)


@pytest.mark.parametrize("B_kind, C_kind", [("DN", "BNL"), ("BNL", "DN"), ("BGNL", "BNL"), ("BNL", "BGNL")])
def test_mixed_projections(isa, B_kind, C_kind):
    shape = (2, 18, 5, 20)
    tensors = make(shape, B_kind, groups=3) | {"C": make(shape, C_kind, groups=3, seed=5)["C"]}
    check(tensors, *output_gradients(shape), reverse=True)


@pytest.mark.parametrize("without", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids="-".join)
@pytest.mark.parametrize("softplus", [True, False])
def test_options(isa, without, softplus):
    shape = (2, 19, 7, 37)
    tensors = make(shape, without=without)
    if not softplus:
        tensors["delta"] = 0.1 * tensors["delta"].abs()  # a negative step would let the state grow
        tensors["delta_bias"] = None
    check(tensors, *output_gradients(shape), softplus=softplus)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(isa, layout, dy_layout, dtype):
    shape = (2, 19, 4, 37)
    tensors = make(shape, dtype=dtype, layout=layout)
    tensors["A"] = tensors["A"].t().contiguous().t()
    for name in ("D", "delta_bias"):
        tensors[name] = tensors[name].repeat_interleave(2)[::2]
    dy, dstate = output_gradients(shape, dtype)
    value = check(tensors, dy_layout(dy), dstate.transpose(1, 2).contiguous().transpose(1, 2), reverse=True)
    channels_inside = layout.__name__ in ("channels_last", "slice_of_wider", "repeated")
    for name in ("y", "du", "ddelta", "dz"):
        assert value[name].stride(1 if channels_inside else 2) == 1


@pytest.mark.parametrize("only", ["y", "last_state"])
def test_gradient_of_one_output(isa, only):
    shape = (2, 17, 5, 20)
    dy, dstate = output_gradients(shape)
    check(make(shape), dy if only == "y" else None, dstate if only == "last_state" else None)


def test_bfloat16_sequences_with_float32_delta_and_parameters(isa):
    shape = (2, 17, 5, 20)
    wide, narrow = make(shape), make(shape, dtype=torch.bfloat16)
    check(wide | {k: narrow[k] for k in ("u", "z", "B")}, *output_gradients(shape, torch.bfloat16))
    check(narrow | {k: narrow[k].bfloat16() for k in ("D", "delta_bias")}, *output_gradients(shape, torch.bfloat16))


@pytest.mark.parametrize("shift", [-30.0, 30.0, 200.0])
def test_extreme_steps(isa, shift):
    """Steps so small that softplus is exp, and so large that exp(dt A) vanishes: accurate, and no NaN."""
    shape = (1, 17, 16, 40)
    value = check(make(shape, delta_shift=shift), *output_gradients(shape))
    assert all(torch.isfinite(v).all() for v in value.values())


def test_overflow(isa):
    """A positive A is legal: inf where the reference has it."""
    tensors = make((1, 17, 3, 33), without=("D", "z"))
    tensors |= {"A": tensors["A"].abs() * 30} | {k: tensors[k].abs() for k in ("u", "B", "C")}
    value, same = run(selective_scan, tensors), run(selective_scan_reference, tensors)
    assert value["last_state"].isinf().any() and value["y"].isinf().any()
    for name in value:
        torch.testing.assert_close(value[name], same[name], rtol=1e-3, atol=0, equal_nan=True)


def test_wide_gates(isa):
    shape = (1, 17, 3, 33)
    tensors = make(shape)
    tensors["z"] = 300 * tensors["z"]
    value = check(tensors, *output_gradients(shape))
    assert all(v.isfinite().all() for v in value.values())


def test_nan_stays_in_its_channel(isa):
    tensors = make((1, 17, 4, 40))
    tensors["u"][0, 3, 20] = float("nan")
    y = run(selective_scan, tensors)["y"]
    assert y[0, 3, 20:].isnan().all()
    assert y[0, 3, :20].isfinite().all() and y[0, [*range(3), *range(4, 17)]].isfinite().all()


@pytest.mark.parametrize("shift", [-6.0, -3.0])
def test_slow_decays_gather_no_error(isa, shift):
    """Over 500 steps of small dt an error of the exponential that is the same at every step would add up."""
    shape = (1, 32, 16, 500)
    check(make(shape, delta_shift=shift), *output_gradients(shape))


@pytest.mark.parametrize("shape", [(1, 300, 16, 100), (3, 40, 16, 100), (2, 2, 4, 3)], ids=str)
def test_same_bits_on_every_run_and_any_number_of_threads(isa, threads, shape):
    tensors, (dy, dstate) = make(shape, groups=2, kind="BGNL"), output_gradients(shape)
    threads(1)
    first = run(selective_scan, tensors, dy, dstate)
    for number in (1, 2, 3, 5):
        threads(number)
        again = run(selective_scan, tensors, dy, dstate)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_reverse_is_the_flipped_scan(isa):
    shape = (2, 18, 6, 45)
    tensors, (dy, dstate) = make(shape), output_gradients(shape)

    def flip(x):
        return x.flip(-1)

    flipped = tensors | {k: flip(tensors[k]) for k in ("u", "delta", "B", "C", "z")}
    forwards, backwards = (
        run(selective_scan, flipped, flip(dy), dstate),
        run(selective_scan, tensors, dy, dstate, True, True),
    )
    for name in forwards:
        along_time = name in ("y", "du", "ddelta", "dB", "dC", "dz")
        assert torch.equal(backwards[name], flip(forwards[name]) if along_time else forwards[name]), name


def test_without_gradients_nothing_is_kept():
    """Inference and training give the same bits; the operator of inference returns no states."""
    tensors = make((2, 33, 16, 50))
    y, last_state = torch.ops.rdfa.selective_scan(*tensors.values(), True, False)
    trained = torch.ops.rdfa.selective_scan_train(*tensors.values(), True, False)
    assert torch.equal(y, trained[0]) and torch.equal(last_state, trained[1])


def assert_near(name, value, same_dtype, truth):
    """Without regard to cancellation, which in a sum of few terms can make the last bits of one number look large."""
    assert value.shape == truth.shape
    error, allowed = relative_rms(value, truth), 4 * relative_rms(same_dtype, truth) + 1e-4
    assert error <= allowed, f"{name}: relative RMS error {error:.2e}, allowed {allowed:.2e}"


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_arguments(data):
    draw = data.draw
    groups = draw(st.integers(1, 3))
    shape = (
        draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 40)),
        draw(st.integers(1, 20)),
        draw(st.integers(1, 40)),
    )
    kind = draw(st.sampled_from(["BNL", "BLN", "BGNL", "DN"]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    without = draw(st.sets(st.sampled_from(["D", "z", "delta_bias"])))
    layout, dy_layout = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))
    tensors = make(shape, kind, groups, dtype, layout, seed=draw(st.integers(0, 99)), without=without)
    dy, dstate = output_gradients(shape, dtype)
    check(tensors, dy_layout(dy), dstate, reverse=draw(st.booleans()), assert_accurate=assert_near)
