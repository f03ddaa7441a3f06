"""The native library of the operators: found beside this file, loaded once, and optional.

Without it every operator runs its plain PyTorch reference; the first one that does says how to build it.
"""

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

OPERATORS = (
    "average_rows",
    "causal_conv1d",
    "causal_conv1d_backward",
    "conv_rows",
    "decode_nms",
    "linear",
    "nms",
    "scan_rows",
    "selective_scan",
)
REMEDY = "build it with: python -m ops.build"
DTYPES = (torch.float32, torch.bfloat16)
# RDFA_GPU_KERNELS: "aot" leaves the GPU to the kernels compiled ahead of time, as on a machine without Triton; "jit"
# tells the native library to leave it to Triton.
GPU_SWITCH = "RDFA_GPU_KERNELS"
HAS_TRITON = importlib.util.find_spec("triton") is not None and os.environ.get(GPU_SWITCH) != "aot"
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DIFFERENTIATING = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)

# Plain globals, so that torch.compile can trace through the functions below.
recording_onnx = False  # within `ops.onnx_export`: operators record what ONNX has in their place
_tried = False
_problem: str | None = None  # one line saying why the operators are not there
_warned = False


def path() -> Path:
    """Where the library lies once built."""
    return Path(__file__).resolve().parent / "librdfa_ops.so"


def onnxruntime_path() -> Path:
    """Where the operator library for ONNX Runtime lies, if it was built (``ops.build --onnxruntime_headers``)."""
    return path().with_name("librdfa_ort.so")


def pack_path() -> Path:
    """Where the kernels compiled ahead of time lie (``python -m ops.aot``): beside the library, which looks there."""
    return path().with_suffix(".cubins")


def loaded() -> bool:
    """Whether the library's operators are there; loads it if need be, silently."""
    global _tried, _problem
    if not _tried:
        _problem = _load()
        _tried = True
    return _problem is None


def available() -> bool:
    """Like `loaded`, for code about to use a reference instead: the first time, a warning names the remedy. False as
    well where only a reference's gradients are right."""
    global _warned
    if loaded():
        return not _differentiates_otherwise()
    if not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(f"{_problem}; the slower plain PyTorch operators are used: {REMEDY}", stacklevel=3)
    return False


def _differentiates_otherwise() -> bool:
    """Whether `torch.func` or forward mode differentiates, where the gradients of the operators are not known:
    the one would stop with an error about something else, the other take the operators for constants."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return torch._C._are_functorch_transforms_active()
    return any(level.key() in _DIFFERENTIATING for level in torch._C._functorch.get_interpreter_stack() or ())


def require() -> None:
    """Raise RuntimeError with the remedy unless the library is there."""
    if not loaded():
        raise RuntimeError(f"{_problem}; {REMEDY}")


def _load() -> str | None:
    # An application may have loaded a copy already; registering the operators twice would be an error.
    if not any(hasattr(torch.ops.rdfa, name) for name in OPERATORS):
        if not path().exists():
            return f"{path()} is not built"
        try:
            with _left_to_triton():
                torch.ops.load_library(path())
        except (OSError, RuntimeError) as error:
            return f"{path()} does not load ({str(error).splitlines()[0]})"
    missing = [name for name in OPERATORS if not hasattr(torch.ops.rdfa, name)]
    return f"{path()} is out of date (it lacks {', '.join(missing)})" if missing else None


@contextlib.contextmanager
def _left_to_triton() -> Iterator[None]:
    """The library registers no GPU kernels where Triton's will be: torch warns of two for one operator."""
    before = os.environ.get(GPU_SWITCH)
    if HAS_TRITON:
        os.environ[GPU_SWITCH] = "jit"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(GPU_SWITCH, None)
        else:
            os.environ[GPU_SWITCH] = before


def implement_with_triton(operator: str, implementation: Callable) -> None:
    """Register a launcher of Triton kernels for an operator of the library, where Triton is in charge of the GPU.

    A copy of the library that the application loaded before may serve the operator already.
    """
    if HAS_TRITON and not torch._C._dispatch_has_kernel_for_dispatch_key(f"rdfa::{operator}", "CUDA"):
        torch.library.impl(f"rdfa::{operator}", "CUDA", implementation)


def runs_native(*tensors: torch.Tensor | None) -> bool:
    """Whether these arguments go to the C++ kernels: all float32 or bfloat16 on the CPU, and the library is there."""
    return all(t is None or (t.device.type == "cpu" and t.dtype in DTYPES) for t in tensors) and available()


def widened(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...] | None:
    """The arguments with float16 as float32, if that is what brings them to the C++ kernels, else None.

    Those have no float16 of their own; sums and states are float32 in any case, so only the memory traffic is more.
    """
    if all(t is None or (t.device.type == "cpu" and t.dtype in (*DTYPES, torch.float16)) for t in tensors):
        wide = tuple(t.float() if t is not None and t.dtype == torch.float16 else t for t in tensors)
        if any(a is not b for a, b in zip(wide, tensors)) and available():
            return wide
    return None


def runs_triton(*tensors: torch.Tensor | None) -> bool:
    """Whether these arguments go to the Triton kernels: all on the GPU in one of TRITON_DTYPES, Triton is installed,
    and the library, which declares the operators, is there."""
    fits = all(t is None or (t.device.type == "cuda" and t.dtype in TRITON_DTYPES) for t in tensors)
    return fits and HAS_TRITON and available()


def runs_aot(*tensors: torch.Tensor | None) -> bool:
    """Whether these arguments go to the kernels compiled ahead of time: as `runs_triton`, but Triton is not in charge,
    the pack is there, and no gradient is asked for, which those kernels do not know."""
    fits = all(t is None or (t.device.type == "cuda" and t.dtype in TRITON_DTYPES) for t in tensors)
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return fits and not HAS_TRITON and not differentiated and pack_path().exists() and available()


def empty_bdl(x_BDL: torch.Tensor) -> torch.Tensor:
    """What the library allocates for a result shaped like `x_BDL` (for fake implementations).

    Its memory order is [B,L,D] when x's channels lie closer together than its time steps, else [B,D,L].
    """
    B, D, L = x_BDL.shape
    if x_BDL.stride(1) < x_BDL.stride(2):
        return x_BDL.new_empty((B, L, D)).transpose(1, 2)
    return x_BDL.new_empty((B, D, L))


def refuse_gradients(operator: str, remedy: str) -> None:
    """Make differentiating the result of ``rdfa::operator`` an error that names the remedy, not a silent zero."""

    def refuse(ctx, *gradients):
        raise NotImplementedError(f"rdfa::{operator} has no gradient: {remedy}")

    torch.library.register_autograd(f"rdfa::{operator}", refuse)
