"""The detector compiled ahead of time by AOTInductor: ``detector.pt2``, a package that torch loads with
``librdfa_ops.so``, from Python and from C++, without the model's code.

    (features, mask) -> (cls_logits, offsets, point_mask)

Weights are constants of the package. It holds machine code: it runs on processors with the vector instructions of the
one that compiled it (AVX2 or AVX-512), in the torch that made it. One that was exported for a GPU runs on that kind of
GPU. No path of the machine that made it is left inside.
"""

import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor_config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.runtime.runtime_utils import cache_dir, default_cache_dir
from torch._inductor.utils import fresh_cache

from ops import library
from rdfa.errors import UsageError

# What torch calls the vector instructions of a processor -> the architecture that has them, and their width in bits.
ARCHITECTURES = {"AVX2": ("x86-64-v3", 256), "AVX512": ("x86-64-v4", 512)}


def export(detector: nn.Module, path: Path, time: int, device: str = "cpu") -> None:
    """Compile `detector`, as `form.deployed` made it, for this kind of processor or GPU, and write it to `path`.

    Args:
        path: must end in .pt2.
        time: length of the example that is traced; the file serves every multiple of the coarsest stride.
        device: "cpu" or "cuda".

    Raises:
        UsageError: the native library is not built, or there is no C++ compiler.
    """
    if not library.loaded():
        raise UsageError(f"AOTInductor files run on the native operators, which are missing here: {library.REMEDY}")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UsageError(
            "AOTInductor compiles C++, and no compiler was found: install g++, or name one in the variable CXX"
        ) from error
    with torch.no_grad(), warnings.catch_warnings(), fresh_cache():
        # Of torch, about its own use of torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        program = _trace(detector, time, device)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=_settings())
        anonymise(path, _folders())


def _trace(detector: nn.Module, time: int, device: str) -> torch.export.ExportedProgram:
    stride = detector.settings.coarsest_stride
    batch = torch.export.Dim("batch")
    # The length is a multiple of the coarsest stride by construction, so that no level needs rounding.
    coarse = torch.export.Dim("coarse", max=detector.generator.max_frames // stride)
    features = torch.zeros(2, detector.settings.embedding.input_c, time, device=device)
    mask = torch.ones(2, time, dtype=torch.bool, device=device)
    axes = ({0: batch, 2: stride * coarse}, {0: batch, 1: stride * coarse})
    return torch.export.export(detector, (features, mask), dynamic_shapes=axes)


def _settings() -> dict[str, Any]:
    """Settings of Inductor, as names in its configuration."""
    settings = {
        # Weights become constants, and those that PyTorch multiplies are packed for oneDNN.
        "freezing": True,
        # Otherwise the number of threads of this process is compiled in.
        "cpp.dynamic_threads": True,
    }
    # For profilers only; line tables are a megabyte, and full of paths.
    optional = {"aot_inductor.enable_frame_pointer": False, "aot_inductor.enable_line_tables": False}
    architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
    if architecture is not None:
        optional["cpp.march"], settings["cpp.simdlen"] = architecture
    # Older versions of torch lack some of these; without cpp.march they compile for this very processor.
    known = inductor_config.get_config_copy()
    return settings | {name: value for name, value in optional.items() if name in known}


def _folders() -> list[str]:
    """Folders of this machine that the compiler saw, in the order in which to replace them: the longest first."""
    used = {cache_dir(), default_cache_dir(), str(Path(torch.__file__).parent.parent), sys.base_prefix}
    # A name as short as /usr says nothing, and may stand in weights by chance.
    return sorted((folder for folder in used if len(folder) > 12), key=len, reverse=True)


def anonymise(package: Path, folders: Sequence[str]) -> None:
    """Replace the names of `folders` inside a package by as many dots: error messages of C++, the compiler's command.

    A name of the same length leaves everything in its place, in machine code too.
    """
    rewritten = package.with_suffix(".tmp")
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(rewritten, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            for folder in folders:
                content = content.replace(folder.encode(), b"." * len(folder.encode()))
            target.writestr(member, content)
    rewritten.replace(package)
