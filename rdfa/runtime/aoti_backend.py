"""AOTInductor backend: torch and the native operator library, no model code and no compiler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rdfa.errors import RunError, UsageError
from rdfa.runtime.torch_device import check_device, numpy_call
from rdfa.runtime.torchscript_backend import load_operators

# Vector instructions of x86 as torch names them; a processor has those of all before.
INSTRUCTIONS = ("DEFAULT", "AVX2", "AVX512")


def start(path: Path, manifest: dict[str, Any], device: str, threads: int | None) -> Callable[..., Any]:
    """Load the package; the result maps numpy (features, mask) to the three outputs.

    Raises:
        UsageError: it was compiled for processors that have more instructions than this one, or for a GPU and there is
            none.
        RunError: it does not load in this torch.
    """
    compiled_for, here = manifest["files"][path.name].get("processor"), torch.backends.cpu.get_cpu_capability()
    if not _serves(here, compiled_for):
        raise UsageError(
            f"{path} was compiled for processors with {compiled_for}, this one has {here}: export it on such a machine"
        )
    check_device(device)
    load_operators(path.parent, manifest)
    index = torch.device(device).index or 0 if device != "cpu" else -1
    try:
        # What torch._inductor.aoti_load_package wraps; that one imports the compiler, 2 s and 150 MB.
        model = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, index)
    except (OSError, RuntimeError) as error:
        made_with = manifest["versions"].get("torch")
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"{path}, made with torch {made_with}, does not load in {torch.__version__} ({reason}): export it again"
        ) from error
    return numpy_call(lambda *inputs: model.run(list(inputs)), device, threads)


def _serves(here: str, compiled_for: str | None) -> bool:
    if here in INSTRUCTIONS and compiled_for in INSTRUCTIONS:
        return INSTRUCTIONS.index(here) >= INSTRUCTIONS.index(compiled_for)
    return here == compiled_for
