"""The FA-Bi-S6 block against the published one, its gradients against float64, and what its formula implies."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdfa.modeling.fa_bi_s6 import AGGREGATED, SINGLE, FeatureAggregatedBiS6
from tests.golden.rebuild import FOLDER, load_npz
from tests.modeling.cases import relative_l2

FILES = ["mamba_d16_k1", "mamba_d16_k3", "mamba_d16_k3_e2", "mamba_d48_k1", "mamba_d48_k3"]
# What the published float32 run was measured to be off by, file by file.
PUBLISHED_ERRORS = json.loads((FOLDER / "mamba_errors.json").read_text())
GRADIENTS = ["mamba_grad_d16_k1_L64", "mamba_grad_d16_k3_L64", "mamba_grad_d16_k3_L2304"]


def golden_block(golden: dict, dtype=torch.float32) -> FeatureAggregatedBiS6:
    state = {key.removeprefix("sd/"): torch.from_numpy(golden[key]) for key in golden if key.startswith("sd/")}
    inner, widths = state["A_log"].shape[0], AGGREGATED if "conv1ds.2.weight" in state else SINGLE
    d_model = state["in_proj.weight"].shape[1]
    block = FeatureAggregatedBiS6(d_model, widths, expand=inner // d_model)
    assert list(block.state_dict()) == list(state)
    block.load_state_dict(state)
    return block.to(dtype)


@pytest.mark.parametrize("name", FILES)
def test_outputs_equal_the_published_ones(name):
    golden = load_npz(name)
    for key in (key for key in golden if key.startswith("x_")):
        length = key.removeprefix("x_")
        block = golden_block(golden)
        if f"dt_bias_{length}" in golden:
            block.dt_proj.bias.data = torch.from_numpy(golden[f"dt_bias_{length}"])
        x = torch.from_numpy(golden[key])
        with torch.inference_mode():
            y = block(x)
        expected = torch.from_numpy(golden[f"y_{length}"])
        assert relative_l2(y, expected) <= 5e-6, length
        scale = PUBLISHED_ERRORS[f"{name}/{length}"]["scale"]
        assert (y - expected).abs().max() <= 1e-4 * scale, length
        assert y.abs().max().item() == pytest.approx(scale, rel=1e-5), length
        if f"y64_{length}" in golden:
            with torch.inference_mode():
                y64 = block.double()(x.double())
            assert y64.dtype == torch.float64
            assert relative_l2(y64, golden[f"y64_{length}"]) < 1e-7, length


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_the_true_ones(name):
    golden = load_npz(name)
    block, x = golden_block(golden), torch.from_numpy(golden["x"]).requires_grad_()
    y = block(x)
    assert relative_l2(y, golden["y"]) <= 5e-6
    y.backward(torch.from_numpy(golden["dout"]))
    gradients = {"x": x.grad} | {name: parameter.grad for name, parameter in block.named_parameters()}
    for key in (key for key in golden if key.startswith("true/")):
        assert relative_l2(gradients.pop(key.removeprefix("true/")), golden[key]) <= 1e-5, key
    assert not gradients  # every gradient was checked


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_published_backward_differs_from_ours_by_its_measured_errors(name):
    """Ours are the true gradients: the published ones are as far from them as a float64 reference found."""
    golden, errors = load_npz(name), PUBLISHED_ERRORS[name]
    block, x = golden_block(golden), torch.from_numpy(golden["x"]).requires_grad_()
    block(x).backward(torch.from_numpy(golden["dout"]))
    for parameter, gradient in {"x": x.grad, **{n: p.grad for n, p in block.named_parameters()}}.items():
        error, key = errors[f"official_vs_true/{parameter}"], f"official/{parameter}"
        if parameter.startswith("conv1ds"):
            assert key not in golden and error == "official gradient is None"
            continue
        # Relative to the true gradient; float32 rounding adds 1e-6 to the right ones.
        distance = (torch.from_numpy(golden[key]) - gradient).double().norm() / gradient.double().norm()
        assert distance.item() == pytest.approx(error["rel_l2"], rel=1e-4, abs=2e-6), parameter


def random_block(d_model=6, widths=AGGREGATED, seed=0, **options) -> FeatureAggregatedBiS6:
    torch.manual_seed(seed)
    block = FeatureAggregatedBiS6(d_model, widths, **options)
    with torch.no_grad():
        for conv in block.conv1ds:
            conv.bias.normal_()
        block.dt_proj.bias.normal_()
        block.A_log.add_(0.3 * torch.randn_like(block.A_log))
    return block


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 9), d_model=st.integers(1, 19), seed=st.integers(0, 9))
def test_reversed_time_swaps_the_directions(batch, length, d_model, seed):
    block, swapped = random_block(d_model, seed=seed).double(), random_block(d_model, seed=seed).double()
    x = torch.randn(batch, length, d_model, dtype=torch.float64)
    with torch.no_grad():
        swapped.in_proj.weight.copy_(block.in_proj.weight.roll(2 * block.d_inner, 0))
        swapped.out_proj.weight.copy_(block.out_proj.weight.roll(len(AGGREGATED) * block.d_inner, 1))
        torch.testing.assert_close(swapped(x.flip(1)), block(x).flip(1), rtol=1e-9, atol=1e-12)


def test_each_direction_sees_only_its_past():
    block, inner = random_block().double(), len(AGGREGATED) * 6
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4] += 1
    with torch.no_grad():
        differs = (block.scans(x) != block.scans(changed))[0]
    assert not differs[:4, :inner].any() and differs[4:, :inner].any(1).all()
    assert not differs[5:, inner:].any() and differs[:5, inner:].any(1).all()


def test_first_width_alone_chooses_B_and_C():
    """With dt_proj's weight at 0 the scan depends on later widths through u alone, and is linear in it."""
    block = random_block().double()
    x = torch.randn(1, 12, 6, dtype=torch.float64)
    with torch.no_grad():
        block.dt_proj.weight.zero_()
        block.D.zero_()
        block.conv1ds[1].weight.zero_()
        parts = []
        for bias in (1.0, 2.0):
            block.conv1ds[1].bias.fill_(bias)
            parts.append(block.scans(x)[..., 6:12])
    ratio = torch.nn.functional.silu(torch.tensor(2.0, dtype=torch.float64)) / torch.nn.functional.silu(
        torch.tensor(1.0, dtype=torch.float64)
    )
    torch.testing.assert_close(parts[1], ratio * parts[0])


def test_operators_get_channels_last_views(monkeypatch):
    """No layout copy: channels lie side by side in every tensor that goes into the two operators."""
    import rdfa.modeling.fa_bi_s6 as module

    strides = []
    for name in ("causal_conv1d", "selective_scan"):
        operator = getattr(module, name)

        def spy(*args, operator=operator, **kwargs):
            tensors = [t for t in (*args, kwargs.get("z")) if isinstance(t, torch.Tensor) and t.dim() == 3]
            strides.extend(t.stride(1) for t in tensors)
            return operator(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    with torch.inference_mode():
        random_block()(torch.randn(2, 5, 6))
    assert len(strides) == 2 * 3 * (1 + 5) and set(strides) == {1}


def test_parameters_start_as_mamba_does():
    torch.manual_seed(0)
    block = FeatureAggregatedBiS6(160, AGGREGATED, d_state=4)
    assert torch.equal(block.A_log, torch.log(torch.tensor([1.0, 2, 3, 4])).expand(160, 4))
    assert torch.equal(block.D, torch.ones(160))
    assert all(not conv.bias.any() for conv in block.conv1ds)
    assert [conv.weight.shape[2] for conv in block.conv1ds] == [2, 3, 4]
    assert block.dt_rank == 10 and block.dt_proj.weight.abs().max() <= 10**-0.5
    dt = torch.nn.functional.softplus(block.dt_proj.bias)
    assert 0.001 <= dt.min() < 0.0015 and 0.07 < dt.max() <= 0.1001
    # Log-uniform: the median is the geometric mean of the ends.
    assert 0.006 < dt.median() < 0.016
    assert block.in_proj.weight.abs().max() <= 1 / math.sqrt(160)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_near_float32(dtype):
    block = random_block(32)
    x = torch.randn(2, 33, 32)
    with torch.inference_mode():
        expected = block(x)
        actual = block.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    assert relative_l2(actual, expected) < (2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("widths", [AGGREGATED, SINGLE], ids=str)
@pytest.mark.parametrize("length", [1, 7, 40])
def test_the_form_for_gpus_is_the_same(widths, length):
    """One launch for all convolutions and one for all scans; composed of single ones on a CPU."""
    torch.manual_seed(0)
    block = FeatureAggregatedBiS6(16, widths).double()
    x = torch.randn(3, length, 16, dtype=torch.float64, requires_grad=True)
    y, fused = block.scans(x), block._fused_scans(x)
    assert fused.shape == y.shape
    torch.testing.assert_close(fused, y, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(y)
    parameters = [x, *(p for name, p in block.named_parameters() if name != "out_proj.weight")]
    for expected, value in zip(*(torch.autograd.grad((out * weights).sum(), parameters) for out in (y, fused))):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
