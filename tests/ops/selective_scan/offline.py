"""Compiles the kernels for a GPU that need not be there, and counts what the compiler made of them.

    python -m tests.ops.selective_scan.offline '[["forward", 0, "bf16", 90], ["backward", 0, "fp32", 80]]'

prints a JSON list: for each kernel, its tile's index, the dtype of the sequences and the compute capability, the
registers, the bytes of stack and of shared memory, and the instructions of the main loop per (channel, state, step).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ops.selective_scan import tiles
from ops.selective_scan.triton_backward import backward_kernel
from ops.selective_scan.triton_forward import forward_kernel

N = 16
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SEQUENCES = ("u", "delta", "z", "y", "dy", "du", "ddelta", "dz")


def tile_of(kernel, index, dtype):
    return tiles.FORWARD_TILES[index] if kernel == "forward" else tiles.backward_tile(DTYPES[dtype])


def compile_for(kernel, index, dtype, capability):
    tile = tile_of(kernel, index, dtype)
    access = tiles.ACCESS_BYTES // DTYPES[dtype].itemsize
    function = forward_kernel if kernel == "forward" else backward_kernel
    constants = {"N": N, "ALL": N, "R": tile.rows, "LT": tile.lanes, "K": tile.steps // access, "V": access,
                 "UNIT": access, "EVEN": True, "SOFTPLUS": True, "SAVE": 0, "dlast_ptr": None, "last_ptr": None}  # fmt: skip
    if kernel == "forward":
        constants["states_ptr"] = None
    signature, hints = {}, {}
    for i, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            signature[name] = f"*{dtype}" if name.removesuffix("_ptr") in SEQUENCES else "*fp32"
            hints[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    return triton.compile(
        ASTSource(function, signature, constants, hints),
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": tile.rows * tile.lanes // 32,
            "maxnreg": tile.registers,
            "enable_fp_fusion": True,
        },
    )


def disassemble(cubin, option):
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool if tool.exists() else "cuobjdump", option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def longest_loop(sass):
    """Instructions from the target of a backward branch to that branch."""
    addresses = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)]
    longest = 0
    for address, text in addresses:
        target = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            longest = max(longest, sum(int(target[1], 16) <= a <= address for a, _ in addresses))
    return longest


def figures(kernel, index, dtype, capability):
    compiled = compile_for(kernel, index, dtype, capability)
    cubin = compiled.asm["cubin"]
    usage = re.search(r"REG:(\d+) STACK:(\d+)", disassemble(cubin, "--dump-resource-usage"))
    instructions = longest_loop(disassemble(cubin, "--dump-sass"))
    return {
        "registers": int(usage[1]),
        "stack": int(usage[2]),
        "shared": compiled.metadata.shared,
        "instructions": instructions / (N * tile_of(kernel, index, dtype).steps),
    }


if __name__ == "__main__":
    assert "TRITON_INTERPRET" not in os.environ
    print(json.dumps([figures(*job) for job in json.loads(sys.argv[1])]))
