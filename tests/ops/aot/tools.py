"""Packs of fake kernels, the driver that runs them, and the library's GPU operators as operators for CPU tensors."""

import ctypes
import subprocess
from pathlib import Path

import torch

from ops import build as builder
from ops.aot import compiler, pack, variants
from ops.selective_scan import tiles

HERE = Path(__file__).parent
STEPS = {f"{tile.rows}x{tile.lanes}": tile.steps for tile in tiles.FORWARD_TILES}


def build_library(folder: Path) -> Path:
    """``on_cpu.so``: `on_cpu.cpp` with the GPU part of the native library, whose pack lies beside it."""
    builder.build()
    torch_dir = Path(torch.__file__).parent
    # One of these asks libtorch_cuda for the stream, the other registers for CUDA.
    others = ("torch.gpu_stream.cpp.o", "torch.gpu_register.cpp.o")
    parts = [path for pattern in ("gpu.*.o", "torch.gpu_*.o") for path in objects(pattern) if path.name not in others]
    link = [f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-ldl"]
    return _link(folder / "on_cpu.so", "on_cpu.cpp", torch_dir / "include", parts, link)


def build_ort_library(folder: Path) -> Path:
    """``ort_on_cpu.so``: `ort_on_cpu.cpp` with the GPU part of the operator library for ONNX Runtime."""
    names = ("gpu.*.o", "onnxruntime.node.cpp.o", "onnxruntime.gpu_scan.cpp.o")
    parts = [path for name in names for path in objects(name)]
    return _link(folder / "ort_on_cpu.so", "ort_on_cpu.cpp", ort_headers(), parts, ["-ldl"])


def ort_headers() -> Path | None:
    """The folder of ONNX Runtime's headers that ``librdfa_ort.so`` was built with."""
    listings = [path.with_suffix(".d").read_text() for path in objects("onnxruntime.node.cpp.o")]
    headers = [Path(word) for text in listings for word in text.split() if word.endswith(builder.ORT_HEADER)]
    return next((header.parent for header in headers if header.exists()), None)


def objects(pattern: str) -> list[Path]:
    """Objects of the native libraries, as `ops.build` left them."""
    return sorted(builder.OBJECTS.glob(f"*/{pattern}"))


def _link(target: Path, source: str, include: Path, parts: list[Path], libraries: list[str]) -> Path:
    flags = [flag for flag in builder.COMPILE_FLAGS if flag != "-O3"]
    command = [*builder._find_compiler(), *flags, f"-I{builder.SOURCES}", f"-isystem{include}", "-shared"]
    command += [str(HERE / source), *map(str, parts), *libraries, "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def build_driver(folder: Path) -> Path:
    """``libcuda.so.1``, which runs fake kernels on the CPU."""
    path = folder / "libcuda.so.1"
    command = [*builder._find_compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, str(HERE / "fake_driver.cpp"), "-o", str(path)], check=True)
    return path


def strip(pack_file: Path, target: Path, major: int) -> None:
    """A copy of a pack that has machine code for no GPU of that major version."""
    kernels = pack.read(pack_file)
    for kernel in kernels.values():
        kernel.binaries[:] = [b for b in kernel.binaries if b[0] == "ptx" or b[1] // 10 != major]
    pack.write(target, "0.0", kernels.items())


def write_pack(path: Path) -> None:
    """All variants, with the parameters that Triton gives them, for compute capability 9.0 and as PTX for 8.0."""
    pack.write(path, "0.0", [(variant.name, fake_kernel(variant)) for variant in variants.variants()])


def fake_kernel(variant: variants.Variant) -> compiler.Kernel:
    launch = variant.record()
    parameters = [*compiler._specialise(launch)[-1], ("global_scratch", "0"), ("profile_scratch", "0")]
    words = variant.name.split("-")
    steps = STEPS.get(words[2], 0) if len(words) > 2 else 0
    text = " ".join([variant.name, str(steps), *(f"{name}:{kind}" for name, kind in parameters)]).encode() + b"\0"
    kernel = compiler.Kernel(launch.function.__name__, launch.options["num_warps"], 0, tuple(parameters))
    kernel.binaries.extend([("cubin", 90, text), ("ptx", 80, text)])
    return kernel


def content(native, path: Path, kernel: str, capability: int) -> bytes:
    """What a GPU of that compute capability would load, by the library's C++; RuntimeError with its message."""
    room = ctypes.create_string_buffer(1 << 20)
    size = native.content(str(path).encode(), kernel.encode(), capability, room, ctypes.c_int64(len(room)))
    if size < 0:
        raise RuntimeError(room.value.decode())
    return room.raw[:size]
