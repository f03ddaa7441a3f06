"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for GPUs that are not there."""

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
    (16, 2): (168, 24, 10.0),
    (8, 4): (168, 16, 10.2),
    (4, 8): (168, 24, 10.8),
    (2, 16): (168, 24, 11.5),
    (1, 32): (168, 24, 12.1),
}
BACKWARD = (168, 0, 40.0)


def test_interpreted():
    triton_tools.run_interpreted(Path(__file__).with_name("interpreted.py"))


def compile_forward(monkeypatch, capability, dtype, tile, blocks=10**6):
    monkeypatch.setattr(tiles, "forward_tile", lambda *sizes: tile)
    monkeypatch.setattr(tiles, "segment", lambda *sizes: blocks)
    tensors, _ = cases.make_bidirectional(1, 1, 32, STATES, 1024, dtype)
    return triton_tools.compile_launches(capability, lambda: bidirectional._forward(*tensors.values()))


def compile_backward(monkeypatch, capability, dtype, blocks=10**6):
    monkeypatch.setattr(tiles, "segment", lambda *sizes: blocks)
    tensors, grad_y = cases.make_bidirectional(1, 1, 32, STATES, 1024, dtype)
    states = torch.empty(launch.states_shape(tensors["u"], STATES))
    return triton_tools.compile_launches(capability, lambda: bidirectional._backward(grad_y, *tensors.values(), states))


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_every_configuration_compiles_everywhere(monkeypatch, capability):
    for tile in tiles.FORWARD_TILES:
        for kernel in compile_forward(monkeypatch, capability, torch.bfloat16, tile):
            assert kernel.shared == 0 and kernel.stack <= 100, kernel.name
    for kernel in compile_backward(monkeypatch, capability, torch.bfloat16):
        assert kernel.stack <= 100, kernel.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_every_dtype_compiles(monkeypatch, dtype):
    compiled = compile_forward(monkeypatch, 90, dtype, tiles.FORWARD_TILES[0])
    compiled += compile_forward(monkeypatch, 90, dtype, tiles.FORWARD_TILES[-1])
    assert all(kernel.shared == 0 and kernel.stack <= 100 for kernel in compiled)
    assert all(kernel.stack <= 100 for kernel in compile_backward(monkeypatch, 90, dtype))


def test_segments_compile(monkeypatch):
    names = [k.name for k in compile_forward(monkeypatch, 90, torch.bfloat16, tiles.FORWARD_TILES[2], 2)]
    assert names == ["pack_kernel", "forward_kernel", "join_segments_kernel", "forward_kernel"]
    names = [k.name for k in compile_backward(monkeypatch, 90, torch.bfloat16, 2)]
    assert names == ["pack_kernel", "adjoint_kernel", "join_segments_kernel", "backward_kernel", "unpack_kernel"]


@pytest.mark.parametrize("tile", tiles.FORWARD_TILES, ids=lambda tile: f"{tile.rows}x{tile.lanes}")
def test_forward_stays_as_lean_as_it_was(monkeypatch, tile):
    registers, stack, instructions = FORWARD[tile.rows, tile.lanes]
    kernel = compile_forward(monkeypatch, 90, torch.bfloat16, tile)[-1]
    assert kernel.name == "forward_kernel"
    assert kernel.registers <= registers and kernel.stack <= stack and kernel.shared == 0
    assert kernel.count("LDS") == kernel.count("STS") == kernel.count("BAR") == 0
    (loop,) = kernel.loops()
    assert loop / (STATES * tile.steps) <= instructions


def test_backward_stays_as_lean_as_it_was(monkeypatch):
    registers, stack, instructions = BACKWARD
    kernel = next(k for k in compile_backward(monkeypatch, 90, torch.bfloat16) if k.name == "backward_kernel")
    assert kernel.registers <= registers and kernel.stack <= stack and kernel.shared == 0
    inner, outer = kernel.loops()
    steps = tiles.backward_tile(torch.bfloat16).steps
    assert inner / steps + (outer - inner) / (STATES * steps) <= instructions


@pytest.mark.parametrize("lengths, kernels", [((2304, 1152, 288), 1), ((33, 1, 577), 1), ((144, 176), 1)])
def test_a_new_length_compiles_nothing(monkeypatch, lengths, kernels):
    """Three kinds of length share a kernel each: multiples of the block, of an access, and any other."""
    monkeypatch.setattr(tiles, "forward_tile", lambda *sizes: tiles.FORWARD_TILES[2])
    compiled = set()
    for i, length in enumerate(lengths):
        tensors, _ = cases.make_bidirectional(i + 1, 1, 32, 2, length, torch.bfloat16)
        for kernel in triton_tools.compile_launches(90, lambda t=tensors: bidirectional._forward(*t.values())):
            compiled |= {kernel.sass} if kernel.name == "forward_kernel" else set()
    assert len(compiled) == kernels


def test_more_rows_take_fewer_lanes():
    lanes = [tiles.forward_tile(torch.empty(n, 512, 2304, device="meta"), 1).lanes for n in (1, 16, 512, 4096)]
    assert lanes == sorted(lanes, reverse=True) and lanes[0] == 32
