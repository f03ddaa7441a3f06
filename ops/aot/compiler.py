"""Compile launches of Triton kernels without a GPU.

Triton makes PTX once, for compute capability 8.0, which every later GPU understands; ptxas makes machine code of it
for each target, in a tenth of a second. The PTX itself goes into the pack as well: the driver of a GPU that was unknown
when the pack was made compiles it.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

PTX_TARGET = 80
# Without further calls a kernel gets no more; ours take a few kB or none.
MOST_SHARED = 48 << 10
_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
# Kernels are launched as attributes of their modules, and looked up when they are.
_KERNELS = {
    "ops.selective_scan.triton_common": ("pack_kernel", "join_segments_kernel"),
    "ops.selective_scan.triton_forward": ("forward_kernel",),
    "ops.causal_conv1d.triton_kernels": ("forward_kernel",),
}


class AotError(RuntimeError):
    """Kernels cannot be compiled; the message says in one line why and what to do."""


@dataclass(frozen=True)
class Launch:
    """A call of a kernel: the function, its arguments by name, and the options of the compiler."""

    function: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    aligned: frozenset[str] = frozenset()

    def with_aligned(self, *pointers: str) -> "Launch":
        """The same, promising that these pointers are multiples of 16 bytes."""
        return replace(self, aligned=frozenset(pointers))


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: name of its entry, warps, bytes of shared memory, and its parameters in order as (name, kind),
    kind "p" for a pointer, "i" for a 32-bit integer, "0" for a pointer that is null. binaries: (kind, compute
    capability such as 90 for 9.0, content)."""

    entry: str
    warps: int
    shared: int
    parameters: tuple[tuple[str, str], ...]
    binaries: list[tuple[str, int, bytes]] = field(default_factory=list)


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within, kernels are not launched but appended to the list."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, function):
            self.function = function

        def __getitem__(self, grid) -> Callable[..., None]:
            def record(*values, **keywords):
                names = self.function.arg_names
                arguments = dict(zip(names, values)) | {k: v for k, v in keywords.items() if k in names}
                options = {k: v for k, v in keywords.items() if k not in names}
                launches.append(Launch(self.function, {name: arguments[name] for name in names}, options))

            return record

    with contextlib.ExitStack() as stack:
        for module, names in _KERNELS.items():
            for name in names:
                imported = __import__(module, fromlist=[name])
                stack.enter_context(mock.patch.object(imported, name, Recorder(getattr(imported, name))))
        yield launches


def compile_launch(launch: Launch, targets: Sequence[int]) -> Kernel:
    """The kernel with a cubin for each target (90 stands for sm_90), and PTX.

    Raises:
        AotError: Triton needs something of a launch that the library does not do, or ptxas fails.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, hints, parameters = _specialise(launch)
    source = ASTSource(launch.function, signature, constants, hints)
    with mock.patch.object(triton.knobs.compilation, "disable_line_info", True):
        options = {"enable_fp_fusion": True, **launch.options}
        compiled = triton.compile(source, target=GPUTarget("cuda", PTX_TARGET, 32), options=options)
    facts, ptx = compiled.metadata, compiled.asm["ptx"]
    plain = facts.num_ctas == 1 and not (facts.launch_pdl or facts.launch_cooperative_grid)
    if not plain or facts.global_scratch_size or facts.profile_scratch_size or facts.shared > MOST_SHARED:
        raise AotError(f"{facts.name} needs a launch that the library does not know: use Triton 3.6 to 3.9")
    parameters += [("global_scratch", "0"), ("profile_scratch", "0")]
    _check_parameters(facts.name, ptx, parameters)
    kernel = Kernel(facts.name, facts.num_warps, facts.shared, tuple(parameters))
    kernel.binaries.extend(("cubin", target, _assemble(ptx, target)) for target in targets)
    kernel.binaries.append(("ptx", PTX_TARGET, ptx.encode() + b"\0"))  # the driver takes it as a string
    return kernel


def _specialise(launch):
    """Triton's view of the arguments: types, constants, hints; and those that remain as parameters."""
    signature, constants, hints, parameters = {}, {}, {}, []
    constexpr = {parameter.name for parameter in launch.function.params if parameter.is_constexpr}

    def kind(name, value, path):
        if value is None or name in constexpr:
            constants[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor):
            if name in launch.aligned:
                hints[path] = [["tt.divisibility", 16]]
            parameters.append((name, "p"))
            return _POINTERS[value.dtype]
        parameters.append((name, "i"))
        return "i32"

    for i, (name, value) in enumerate(launch.arguments.items()):
        if isinstance(value, tuple) and name not in constexpr:
            signature[name] = tuple(kind(name, item, (i, k)) for k, item in enumerate(value))
        else:
            signature[name] = kind(name, value, (i,))
    return signature, constants, hints, parameters


def _check_parameters(name, ptx, parameters):
    """That the kernel takes what will be passed, by the types in its PTX."""
    (declared,) = re.findall(rf"\.entry {name}\((.*?)\)", ptx, re.DOTALL)
    sizes = [int(bits) for bits in re.findall(r"\.param \.[ub](\d+)", declared)]
    if sizes != [32 if kind == "i" else 64 for _, kind in parameters]:
        raise AotError(f"{name} has other parameters than were passed to it: use Triton 3.6 to 3.9")


def _assemble(ptx, target):
    from triton import knobs

    # Of Triton's two assemblers the older: its cubins load under drivers from CUDA 12 on.
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [knobs.nvidia.ptxas.path, f"--gpu-name=sm_{target}", str(source), "-o", str(result)]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            reason = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[0]
            raise AotError(f"ptxas fails for sm_{target} ({reason}): leave the target out, or use another Triton")
        return result.read_bytes()
