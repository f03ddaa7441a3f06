"""The kernels on a GPU: against the reference in float64, as torch operators, compiled, repeated, sanitized.

Triton's, or with RDFA_GPU_KERNELS=aot those of the pack, which have no gradients.
"""

import shutil
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ops import bidirectional_scan, library, selective_scan
from ops.selective_scan import bidirectional, tiles
from ops.selective_scan.reference import selective_scan_reference
from tests.ops.conftest import assert_as_exact, relative_rms
from tests.ops.selective_scan import cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        not library.HAS_TRITON and not library.pack_path().exists(), reason="neither Triton nor a pack of kernels"
    ),
]
of_triton = pytest.mark.skipif(not library.HAS_TRITON, reason="only Triton's kernels do this")

all_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"]
)

# (B, D, N, L), odd sizes first.
SHAPES = [(1, 1, 1, 1), (2, 17, 3, 65), (3, 33, 16, 129), (1, 5, 67, 18), (1, 3, 256, 5), (2, 64, 16, 300)]
EMPTY = [(0, 3, 4, 5), (2, 3, 4, 0), (2, 0, 4, 5)]


def check(shape, kind="BNL", softplus=True, reverse=False, **options):
    tensors = {k: None if t is None else t.cuda() for k, t in cases.make(shape, kind, **options).items()}
    dy, dstate = (t.cuda() for t in cases.output_gradients(shape, tensors["u"].dtype))
    assert library.runs_triton(*tensors.values()) or library.runs_aot(*tensors.values())
    exact = {k: None if t is None else t.double() for k, t in tensors.items()}
    with torch.set_grad_enabled(library.HAS_TRITON):
        value, same = (
            cases.run(f, tensors, dy, dstate, softplus, reverse) for f in (selective_scan, selective_scan_reference)
        )
        truth = cases.run(selective_scan_reference, exact, dy, dstate, softplus, reverse)
    for name in truth:
        assert value[name].dtype == same[name].dtype
        assert_as_exact(name, value[name], same[name], truth[name])


@all_dtypes
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last])
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_values_and_gradients(shape, layout, dtype):
    check(shape, dtype=dtype, layout=layout)
    check(shape, kind="BLN", dtype=dtype, layout=layout, reverse=True)


@of_triton
@pytest.mark.parametrize("tile", tiles.FORWARD_TILES, ids=lambda tile: f"{tile.rows}x{tile.lanes}")
@pytest.mark.parametrize("blocks", [1, 3, 10**6])
@pytest.mark.parametrize("length", [256, 272, 301])
def test_every_tile_and_segments(monkeypatch, tile, blocks, length):
    monkeypatch.setattr(tiles, "forward_tile", lambda *sizes: tile)
    monkeypatch.setattr(tiles, "segment", lambda *sizes: blocks)
    check((2, 37, 2, length), reverse=length == 272)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids="-".join)
@pytest.mark.parametrize("kind, groups", [("BGNL", 2), ("DN", 1)])
def test_options(kind, groups, without, softplus):
    check((2, 6, 4, 70), kind, groups=groups, without=without, softplus=softplus, delta_shift=-1.0 if softplus else 4.0)


@all_dtypes
@pytest.mark.parametrize("length", [128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("groups", [1, 2])
def test_grid_of_mamba_ssm(groups, length, dtype):
    """The sizes and tolerances that mamba-ssm's own test of its scan uses: batch 2, 4 channels, 8 states."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*size):
        return torch.randn(*size, device="cuda", generator=generator)

    tensors = {
        "u": random(2, 4, length).to(dtype),
        "delta": (0.5 * torch.rand(2, 4, length, device="cuda", generator=generator)).to(dtype),
        "A": -0.5 * torch.rand(4, 8, device="cuda", generator=generator),
        "B": random(2, groups, 8, length).to(dtype),
        "C": random(2, groups, 8, length).to(dtype),
        "D": random(4),
        "z": random(2, 4, length).to(dtype),
        "delta_bias": 0.5 * torch.rand(4, device="cuda", generator=generator),
    }
    dy = random(2, 4, length).to(dtype)
    with torch.set_grad_enabled(library.HAS_TRITON):
        value, expected = (cases.run(f, tensors, dy) for f in (selective_scan, selective_scan_reference))
    rtol, atol = {torch.float32: (6e-4, 2e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (3e-2, 5e-2)}[dtype]
    weight_tolerance = {"rtol": max(rtol, 1e-3), "atol": max(10 * atol, 5e-3)}
    for name in expected:
        along_time = name in ("y", "last_state", "du", "ddelta", "dz")
        tolerance = {"rtol": rtol, "atol": 2 * atol} if along_time else weight_tolerance
        torch.testing.assert_close(value[name], expected[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}")


@of_triton
@all_dtypes
@pytest.mark.parametrize("sizes", [(2, 3, 17, 16, 301), (1, 1, 64, 16, 1024), (3, 2, 5, 17, 40)], ids=str)
def test_both_directions_and_all_branches(sizes, dtype):
    tensors, grad_y = cases.make_bidirectional(*sizes, dtype, device="cuda")
    value = cases.run_bidirectional(bidirectional_scan, tensors, grad_y)
    # In float64, and so in float32 on the plain operators, the composition takes the reference.
    truth = cases.run_bidirectional(bidirectional_scan, {k: t.double() for k, t in tensors.items()}, grad_y)
    cpu = {k: t.cpu() for k, t in tensors.items()}
    same = cases.run_bidirectional(bidirectional_scan, cpu, grad_y.cpu()) if dtype != torch.float16 else value
    for name in truth:
        assert value[name].dtype == same[name].dtype
        allowed = 2 * relative_rms(same[name].cpu(), truth[name].cpu()) + (2e-6 if dtype == torch.float32 else 1e-3)
        assert relative_rms(value[name], truth[name]) <= allowed, name


def test_a_million_steps():
    """Long, and odd: cut into segments, with a slow decay that crosses all of them."""
    shape = (1, 2, 3, 2**20 - 1)
    tensors = {k: t.cuda() for k, t in cases.make(shape, delta_shift=-8.0).items()}
    tensors["A"] = 1e-3 * tensors["A"]
    y = selective_scan(*tensors.values(), delta_softplus=True)
    half = 2**19
    head = {k: t[..., :half] if k in ("u", "delta", "z", "B", "C") else t for k, t in tensors.items()}
    torch.testing.assert_close(y[..., :half], selective_scan(*head.values(), delta_softplus=True), rtol=1e-4, atol=1e-4)
    assert y.isfinite().all()


@of_triton
def test_opcheck():
    tensors = {k: t.cuda() for k, t in cases.make((2, 5, 3, 11)).items()}
    y, last_state, states = torch.ops.rdfa.selective_scan_train(*tensors.values(), True, False)
    arguments = (y, last_state, *tensors.values(), states, True, False)
    torch.library.opcheck(torch.ops.rdfa.selective_scan_backward, arguments)
    for t in tensors.values():
        t.requires_grad_()
    torch.library.opcheck(torch.ops.rdfa.selective_scan, (*tensors.values(), True, False))


@of_triton
def test_opcheck_of_bidirectional():
    tensors, grad_y = cases.make_bidirectional(2, 2, 5, 3, 11, device="cuda")
    _, states = torch.ops.rdfa.bidirectional_scan_train(*tensors.values())
    torch.library.opcheck(torch.ops.rdfa.bidirectional_scan_backward, (grad_y, *tensors.values(), states))
    torch.library.opcheck(torch.ops.rdfa.bidirectional_scan, tuple(tensors.values()))
    for t in tensors.values():
        t.requires_grad_()
    torch.library.opcheck(torch.ops.rdfa.bidirectional_scan_train, tuple(tensors.values()))


def kernels_compiled() -> int:
    from ops.selective_scan import triton_backward, triton_forward

    kernels = (triton_forward.forward_kernel, triton_backward.backward_kernel)
    return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels)


@of_triton
def test_compiled_training_is_not_recompiled_for_another_length(monkeypatch):
    monkeypatch.setattr(tiles, "forward_tile", lambda *sizes: tiles.FORWARD_TILES[-1])
    monkeypatch.setattr(tiles, "segment", lambda *sizes: 10**6)
    counter = CompileCounterWithBackend("inductor")

    def both(*tensors):
        return bidirectional_scan(*tensors).square().sum()

    compiled = torch.compile(both, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for length in (512, 768, 2304):
        tensors, _ = cases.make_bidirectional(2, 2, 16, 16, length, device="cuda")
        results = []
        for call in (both, compiled):
            leaves = [t.clone().requires_grad_() for t in tensors.values()]
            loss = call(*leaves)
            loss.backward()
            results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
        for expected, value in zip(*results):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-4)
        counts.append(kernels_compiled())
    assert counter.frame_count == 1 and counts[0] == counts[-1]


@of_triton
def test_repeats_to_the_last_bit():
    tensors, grad_y = cases.make_bidirectional(4, 3, 96, 16, 1152, torch.bfloat16, device="cuda")
    first = cases.run_bidirectional(bidirectional_scan, tensors, grad_y)
    for _ in range(19):
        again = cases.run_bidirectional(bidirectional_scan, tensors, grad_y)
        assert all(torch.equal(first[name], again[name]) for name in first)


@of_triton
def test_a_captured_graph_replays():
    tensors, _ = cases.make_bidirectional(1, 3, 64, 16, 288, torch.bfloat16, device="cuda")
    expected = bidirectional.forward(*tensors.values())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = bidirectional.forward(*tensors.values())
    graph.replay()
    assert torch.equal(y, expected)


def test_a_captured_scan_replays_with_other_values():
    tensors = {k: t.cuda() for k, t in cases.make((2, 37, 16, 288), dtype=torch.bfloat16).items()}
    if library.HAS_TRITON:  # compiles at the first call
        selective_scan(*tensors.values(), delta_softplus=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = selective_scan(*tensors.values(), delta_softplus=True, return_last_state=True)
    for seed in (1, 2):
        for t, new in zip(tensors.values(), cases.make((2, 37, 16, 288), dtype=torch.bfloat16, seed=seed).values()):
            t.copy_(new)
        graph.replay()
        expected = selective_scan(*tensors.values(), delta_softplus=True, return_last_state=True)
        assert all(torch.equal(a, b) for a, b in zip(results, expected))


@of_triton
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on the PATH")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, "-m"]
    run = subprocess.run([*command, "tests.ops.selective_scan.sanitized"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
