"""Operations counted against sums made by hand."""

import pytest
import torch

import ops
from ops import library
from rdfa.bench import flops, peaks

B, D, L, N, W = 2, 3, 5, 4, 3


def test_a_matrix_product_is_two_operations_per_element_and_step():
    assert flops.count(lambda: torch.randn(3, 5) @ torch.randn(5, 7)) == 2 * 3 * 5 * 7


@pytest.mark.skipif(not library.loaded(), reason=f"operators are counted in the native library: {library.REMEDY}")
@pytest.mark.parametrize("gated", [False, True])
def test_a_scan(gated):
    u, delta, z = torch.randn(3, B, D, L)
    A, B_, C = -torch.rand(D, N), torch.randn(B, N, L), torch.randn(B, N, L)
    counted = flops.count(lambda: ops.selective_scan(u, delta, A, B_, C, z=z if gated else None))
    assert counted == B * D * L * (7 * N + 7 + (5 if gated else 0))


@pytest.mark.skipif(not library.loaded(), reason=f"operators are counted in the native library: {library.REMEDY}")
@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_convolution(activation):
    x, weight, bias = torch.randn(B, D, L), torch.randn(D, W), torch.randn(D)
    counted = flops.count(lambda: ops.causal_conv1d(x, weight, bias, activation=activation))
    assert counted == B * D * L * (2 * W + 1 + (4 if activation else 0))


def test_fused_operators_are_the_sum_of_their_calls():
    x, u = (2, B, D, L), (2, B, 3 * D, L)
    conv = sum(flops.causal_conv1d((B, D, L), (D, w), (D,), True) for w in (2, 3, 4))
    assert flops.bidirectional_conv1d(x, [(D, 2), (D, 3), (D, 4)], [(D,)] * 3) == 2 * conv
    scan = flops.selective_scan((B, D, L), (B, D, L), (D, N), (B, N, L), (B, N, L), (D,), (B, D, L))
    assert flops.bidirectional_scan(u, u, (D, N)) == 6 * scan


@pytest.mark.skipif(not library.loaded(), reason=f"it takes an operator of the native library: {library.REMEDY}")
def test_an_operator_without_a_formula_makes_the_count_unknown(monkeypatch):
    monkeypatch.setattr(flops, "_FORMULAS", (flops.causal_conv1d,))
    u, delta = torch.randn(2, B, D, L)
    A, B_, C = -torch.rand(D, N), torch.randn(B, N, L), torch.randn(B, N, L)
    assert flops.count(lambda: ops.selective_scan(u, delta, A, B_, C)) is None


def test_peaks_are_the_best_of_several_calls(monkeypatch):
    monkeypatch.setattr(peaks, "SIZE", {"cpu": 100})
    monkeypatch.setattr(peaks, "COPIED_BYTES", {"cpu": 1000})
    ticks = iter([0.0, 0.2, 0.2, 0.3, 0.3, 0.5] * 2)
    found = peaks.measure("cpu", ["float32"], 1, clock=lambda: next(ticks))
    assert found == {"matmul_gflops": {"float32": 0.0}, "copy_gb_per_s": 0.0}  # 2e6 operations in 0.1 s, rounded
    assert not list(ticks)
