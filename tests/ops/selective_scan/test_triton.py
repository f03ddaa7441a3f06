"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for GPUs that are not there."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from ops.selective_scan import bidirectional, launch, tiles
from tests.ops import triton_tools
from tests.ops.selective_scan import cases

STATES = 16
# For each tuned tile (rows, lanes) in bfloat16 on compute capability 9.0: registers, bytes of stack, and instructions
# of the main loop per (channel, state, step). Exponential, products and sums of the recurrence itself are five.
FORWARD = {
    (32, 1): (168, 96, 7.7),
    (8, 4): (168, 24, 10.3),
    (4, 8): (168, 24, 10.9),
    (1, 32): (168, 24, 12.5),
}
BACKWARD = (168, 0, 40.0)


def test_interpreted():
    triton_tools.run_interpreted(Path(__file__).with_name("interpreted.py"))


def compile_forward(capability, dtype, tile, blocks=10**6, states=STATES):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "forward_tile", lambda *sizes: tile)
        patch.setattr(tiles, "segment", lambda *sizes: blocks)
        tensors, _ = cases.make_bidirectional(1, 1, 32, states, 1024, dtype)
        return triton_tools.compile_launches(capability, lambda: bidirectional.forward(*tensors.values()))


def compile_backward(capability, dtype, blocks=10**6):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "segment", lambda *sizes: blocks)
        tensors, grad_y = cases.make_bidirectional(1, 1, 32, STATES, 1024, dtype)
        states = torch.empty(launch.states_shape(tensors["u"], STATES))
        return triton_tools.compile_launches(
            capability, lambda: bidirectional._backward(grad_y, *tensors.values(), states)
        )


def compile_all(capability, dtype):
    """Shared memory and stack of each kernel and tile, in a process of its own."""
    torch.set_num_threads(1)
    kernels = [k for tile in tiles.FORWARD_TILES for k in compile_forward(capability, dtype, tile)]
    return [(k.name, k.shared, k.stack) for k in [*kernels, *compile_backward(capability, dtype)]]


def test_every_configuration_compiles_everywhere():
    """No kernel spills more than a little, and the scans keep out of shared memory, on any GPU from Ampere on."""
    jobs = [(capability, torch.bfloat16) for capability in (80, 86, 89, 90, 100, 120)]
    jobs += [(90, torch.float32), (90, torch.float16)]
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, kernels in zip(jobs, pool.map(compile_all, *zip(*jobs)), strict=True):
            for name, shared, stack in kernels:
                assert shared == 0 and stack <= 100, (job, name, shared, stack)


def test_segments_compile():
    names = [k.name for k in compile_forward(90, torch.bfloat16, tiles.FORWARD_TILES[-1], 2, states=2)]
    assert names == ["pack_kernel", "forward_kernel", "join_segments_kernel", "forward_kernel"]
    names = [k.name for k in compile_backward(90, torch.bfloat16, 2)]
    assert names == ["pack_kernel", "adjoint_kernel", "join_segments_kernel", "backward_kernel", "unpack_kernel"]


@pytest.mark.parametrize("tile", tiles.FORWARD_TILES, ids=lambda tile: f"{tile.rows}x{tile.lanes}")
def test_forward_stays_as_lean_as_it_was(tile):
    registers, stack, instructions = FORWARD[tile.rows, tile.lanes]
    kernel = compile_forward(90, torch.bfloat16, tile)[-1]
    assert kernel.name == "forward_kernel"
    assert kernel.registers <= registers and kernel.stack <= stack and kernel.shared == 0
    assert kernel.count("LDS") == kernel.count("STS") == kernel.count("BAR") == 0
    (loop,) = kernel.loops()
    assert loop / (STATES * tile.steps) <= instructions


def test_backward_stays_as_lean_as_it_was():
    registers, stack, instructions = BACKWARD
    kernel = next(k for k in compile_backward(90, torch.bfloat16) if k.name == "backward_kernel")
    assert kernel.registers <= registers and kernel.stack <= stack and kernel.shared == 0
    inner, outer = kernel.loops()
    steps = tiles.backward_tile(torch.bfloat16).steps
    assert inner / steps + (outer - inner) / (STATES * steps) <= instructions


@pytest.mark.parametrize("lengths", [(2304, 1152, 288), (33, 1, 577), (144, 176)], ids=str)
def test_a_new_length_compiles_nothing(monkeypatch, lengths):
    """Three kinds of length share a kernel each: multiples of the block, of an access, and any other."""
    monkeypatch.setattr(tiles, "forward_tile", lambda *sizes: tiles.FORWARD_TILES[1])
    compiled = set()
    for i, length in enumerate(lengths):
        tensors, _ = cases.make_bidirectional(i + 1, 1, 32, 2, length, torch.bfloat16)
        for kernel in triton_tools.compile_launches(90, lambda t=tensors: bidirectional.forward(*t.values())):
            compiled |= {kernel.sass} if kernel.name == "forward_kernel" else set()
    assert len(compiled) == 1


def test_more_rows_take_fewer_lanes(monkeypatch):
    monkeypatch.setattr(tiles, "_processors", lambda device: 132)
    lanes = [tiles.forward_tile(torch.empty(n, 1536, 2304, device="meta"), 1).lanes for n in (1, 32, 1024)]
    assert lanes[0] == 32 and lanes[-1] == 1


def test_segments_fill_a_device_that_rows_do_not(monkeypatch):
    monkeypatch.setattr(tiles, "_processors", lambda device: 100)
    device = torch.device("cuda")
    assert tiles.segment(device, programs=1200, blocks=72, least=1, waves=1.0) == 72
    assert tiles.segment(device, programs=120, blocks=72, least=1, waves=1.0) == 8
    assert tiles.segment(device, programs=1, blocks=72, least=16, waves=1.0) == 18
