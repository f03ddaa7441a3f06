"""Triton kernels without a GPU: run in the interpreter, and compiled for a GPU that is not there.

The interpreter needs a process of its own, because Triton reads TRITON_INTERPRET when it is imported. Its tests are a
file of ordinary tests that pytest does not collect by itself; `run_interpreted` runs them all in such a process:

    TRITON_INTERPRET=1 python -m pytest tests/ops/causal_conv1d/interpreted.py
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, interpreter
from triton.runtime.jit import JITFunction


def run_interpreted(file: Path) -> None:
    """Runs the tests of `file` in a process where Triton interprets, and fails with its output if one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        pytest.fail(run.stdout, pytrace=False)


def round_like_a_gpu() -> None:
    """Lets the interpreter round to bfloat16, as a GPU does; its own conversion cuts, with twice the error."""
    convert = interpreter._convert_float

    def rounding(input, input_dtype, output_dtype, rounding_mode):
        if input_dtype.name == "fp32" and output_dtype.name == "bf16":
            return torch.from_numpy(input.copy()).bfloat16().view(torch.uint16).numpy()
        return convert(input, input_dtype, output_dtype, rounding_mode)

    interpreter._convert_float = rounding


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel: registers per thread, bytes of stack (spills) and of shared memory."""

    name: str
    registers: int
    stack: int
    shared: int
    cubin: bytes

    @cached_property
    def sass(self) -> str:
        return _cuobjdump(self.cubin, "--dump-sass")

    def count(self, pattern: str) -> int:
        """Instructions that match from their start, predicate apart; "LDG.*128", for example."""
        return len(re.findall(rf"\*/\s+(?:@!?U?P\w+ )?{pattern}", self.sass))

    def loops(self) -> list[int]:
        """The number of instructions in each loop, those of loops within it included, in the order of their ends."""
        addresses = {int(m[1], 16): m[2] for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", self.sass)}
        targets = {at: re.search(r"\bBRA\b.*0x([0-9a-f]+)", text) for at, text in addresses.items()}
        ranges = [(int(target[1], 16), at) for at, target in targets.items() if target and int(target[1], 16) < at]
        return [sum(first <= at <= last for at in addresses) for first, last in ranges]


def compile_launches(capability: int, call) -> list[Compiled]:
    """Compiles what `call` launches for GPUs of a compute capability (90 stands for 9.0), and launches nothing.

    `call` gets CPU tensors. Arguments are specialised by Triton itself, exactly as they are on a GPU.
    """
    kernels = []
    run = JITFunction.run

    def compile_only(function, *args, grid, warmup, **options):
        kernels.append(run(function, *args, grid=grid, warmup=True, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(driver, "_active", _AbsentGPU(capability))
        call()
    return [_inspect(kernel) for kernel in kernels]


class _AbsentGPU:
    """The part of a driver that compiling asks for."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # Triton keeps one target for each device

    def get_current_stream(self, device):
        return 0


def _inspect(kernel):
    cubin = kernel.asm["cubin"]
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump(cubin, "--dump-resource-usage"))
    return Compiled(kernel.metadata.name, int(usage[1]), int(usage[2]), kernel.metadata.shared, cubin)


def _cuobjdump(cubin, option):
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool if tool.exists() else "cuobjdump", option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
