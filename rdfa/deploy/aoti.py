"""The detector compiled ahead of time by AOTInductor: ``detector.pt2``, a package that torch loads with
``librdfa_ops.so``, from Python and from C++, without the model's code.

    (features, mask) -> (cls_logits, offsets, point_mask)

Weights are constants of the package, as `fold` packed them. The package holds machine code: it runs on
processors with the vector instructions of the one that compiled it (AVX2 or AVX-512), in the torch that made it.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config as inductor_config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.utils import fresh_cache

from ops import library
from rdfa.errors import UsageError
from rdfa.modeling.detector import Detector
from rdfa.modeling.folded import fold

# What torch calls the vector instructions of a processor -> the architecture that has them, and their width in bits.
ARCHITECTURES = {"AVX2": ("x86-64-v3", 256), "AVX512": ("x86-64-v4", 512)}


def export(detector: Detector, path: Path, time: int) -> None:
    """Fold `detector`, compile it for this kind of processor and write the package to `path`.

    Args:
        path: must end in .pt2.
        time: length of the example that is traced; the file serves every multiple of the coarsest stride.

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
        program = _trace(detector, time)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=_settings())


def _trace(detector: Detector, time: int) -> torch.export.ExportedProgram:
    stride = detector.settings.coarsest_stride
    batch = torch.export.Dim("batch")
    # The length is a multiple of the coarsest stride by construction, so that no level needs rounding.
    coarse = torch.export.Dim("coarse", max=detector.generator.max_frames // stride)
    features = torch.zeros(2, detector.settings.embedding.input_c, time)
    mask = torch.ones(2, time, dtype=torch.bool)
    axes = ({0: batch, 2: stride * coarse}, {0: batch, 1: stride * coarse})
    return torch.export.export(fold(detector), (features, mask), dynamic_shapes=axes)


def _settings() -> dict[str, Any]:
    """Settings of Inductor, as names in its configuration."""
    settings = {
        # Weights become constants, and those that PyTorch multiplies are packed for oneDNN.
        "freezing": True,
        # Otherwise the number of threads of this process is compiled in.
        "cpp.dynamic_threads": True,
    }
    optional = {"aot_inductor.enable_frame_pointer": False}  # and with them debug symbols, two megabytes
    architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
    if architecture is not None:
        optional["cpp.march"], settings["cpp.simdlen"] = architecture
    # Older versions of torch lack some of these; without cpp.march they compile for this very processor.
    known = inductor_config.get_config_copy()
    return settings | {name: value for name, value in optional.items() if name in known}
