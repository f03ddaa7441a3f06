"""`conv_rows`, `scan_rows`, `average_rows`: the C++ kernels against what they are composed of, in float64."""

import pytest
import torch

from ops.rows.block import TAPS, average_rows, conv_rows, scan_rows
from tests.ops.conftest import relative_rms

# S, L, D, K
SHAPES = [(1, 1, 1, 1), (2, 37, 20, 3), (1, 130, 68, 2), (3, 3, 16, 3), (1, 65, 129, 1)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2}


def random(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed + sum(size)))


def scan_inputs(S, L, D, K, N=16, dtype=torch.float32):
    runs = 2 * K * S
    u, BC, xz = (random(*size).to(dtype) for size in ((runs, L, D), (2 * S, L, 2 * N), (S, L, 4 * D)))
    return u, random(runs, L, D, seed=1).to(dtype), -random(D, N).exp(), BC, random(D), random(D, seed=1), xz


def doubled(*tensors):
    return [t.double() for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolutions(isa, shape, dtype):
    S, L, D, K = shape
    xz, taps = random(S, L, 4 * D).to(dtype), random(K, TAPS + 1, D)
    u = conv_rows(xz, taps)
    assert u.shape == (2 * K * S, L, D) and u.dtype == dtype and u.is_contiguous()
    assert relative_rms(u, conv_rows(*doubled(xz, taps))) <= TOLERANCE[dtype]


def test_convolution_reads_slices_of_other_rows(isa):
    xz, taps = random(2, 9, 100)[:, :, 4:84], random(2, TAPS + 1, 20)
    assert relative_rms(conv_rows(xz, taps), conv_rows(*doubled(xz, taps))) <= 2e-6


@pytest.mark.parametrize("lengths", [[5, 70], [64, 65]])
def test_convolution_of_sequences_that_end_early(isa, lengths):
    xz, taps = random(2, 70, 80), random(3, TAPS + 1, 20)
    u = conv_rows(xz, taps, torch.tensor(lengths)).unflatten(0, (2, -1))
    for s, end in enumerate(lengths):
        torch.testing.assert_close(u[s, :, :end], conv_rows(xz[s : s + 1, :end].contiguous(), taps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_scans(isa, shape, dtype):
    inputs = scan_inputs(*shape, dtype=dtype)
    y = scan_rows(*inputs)
    assert y.dtype == dtype and y.is_contiguous()
    assert relative_rms(y, scan_rows(*doubled(*inputs))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("states", [1, 5, 33])
def test_scans_with_another_number_of_states(isa, states):
    inputs = scan_inputs(2, 19, 24, 2, states)
    assert relative_rms(scan_rows(*inputs), scan_rows(*doubled(*inputs))) <= 2e-6


@pytest.mark.parametrize("valid", [[0, 1], [7, 90], [93, 96], [50, 97]])
def test_padding_in_closed_form(isa, valid):
    """Rows that are all alike behind each video: scans over a few of them give what scans over all give."""
    S, L, D, K = 2, 97, 20, 2
    xz, taps = random(S, L, 4 * D), random(K, TAPS + 1, D)
    for s, end in enumerate(valid):
        xz[s, end:] = random(4 * D, seed=s)
    _, _, A, _, skip, bias, _ = scan_inputs(S, L, D, K)
    weight, BC_weight = random(D, D) / 4, random(32, D) / 4

    def scans(xz, lengths):
        u = conv_rows(xz, taps.to(xz.dtype), lengths)
        delta, BC = u @ weight.to(u.dtype), u[::K] @ BC_weight.to(u.dtype).t()
        return scan_rows(u, delta, A.to(u.dtype), BC, skip.to(u.dtype), bias.to(u.dtype), xz, lengths)

    truth = scans(xz.double(), None)
    y = scans(xz, torch.tensor(valid) + TAPS)
    for s, end in enumerate(valid):
        assert relative_rms(y[s, :end], truth[s, :end]) <= 2e-6 or end == 0


def test_closed_form_where_nothing_decays(isa):
    """A = 0: the state grows by the same amount in each step left out."""
    S, L, D = 1, 200, 16
    u, delta, _, BC, skip, bias, xz = (t[:, :1].expand_as(t).contiguous() if t.dim() == 3 else t
                                       for t in scan_inputs(S, L, D, 1))  # fmt: skip
    inputs = u, delta, torch.zeros(D, 16), BC, skip, bias, xz
    y = scan_rows(*inputs, torch.tensor([9]))
    assert relative_rms(y[:, :5], scan_rows(*doubled(*inputs))[:, :5]) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length, bins", [(1, 1), (12, 4), (37, 5), (5, 8), (2304, 576)])
def test_averages(isa, length, bins, dtype):
    x = random(2, length, 21).to(dtype)
    assert relative_rms(average_rows(x, bins), average_rows(x.double(), bins)) <= TOLERANCE[dtype]


def test_same_bits_whatever_the_number_of_threads(isa, threads):
    inputs, lengths = scan_inputs(2, 130, 68, 3), torch.tensor([130, 41])
    results = []
    for number in (1, 2, 5):
        threads(number)
        u = conv_rows(inputs[-1], random(3, TAPS + 1, 68), lengths)
        results.append([u[:6], u[6:, :41], scan_rows(*inputs)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_opcheck():
    inputs = scan_inputs(2, 7, 8, 2)
    torch.library.opcheck(torch.ops.rdfa.scan_rows, (*inputs, None))
    torch.library.opcheck(torch.ops.rdfa.conv_rows, (inputs[-1], random(2, TAPS + 1, 8), None))
    torch.library.opcheck(torch.ops.rdfa.average_rows, (random(2, 7, 5), 3))


@pytest.mark.parametrize(
    "index, value, message",
    [
        (0, torch.zeros(5, 7, 8), "u has shape"),
        (1, torch.zeros(8, 7, 9), "delta has shape"),
        (3, torch.zeros(4, 7, 31), "BC has shape"),
        (5, torch.zeros(8).double(), "delta_bias has dtype"),
        (6, torch.zeros(2, 7, 31), "xz has shape"),
        (7, torch.tensor([7, 3]), "lengths holds 3: expected at least 4"),
    ],
)
def test_wrong_arguments_are_named(index, value, message):
    arguments = [*scan_inputs(2, 7, 8, 2), None]
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.rdfa.scan_rows(*arguments)
