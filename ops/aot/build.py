"""From the list of variants to a pack, in parallel."""

import importlib.metadata
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ops.aot import pack, variants
from ops.aot.compiler import Kernel, compile_launch


def build(
    output: Path,
    targets: Sequence[int],
    jobs: int,
    report: Callable[[str], None],
    wanted: Callable[[str], bool] = lambda name: True,
) -> int:
    """Compile the variants whose names are `wanted` for `targets` (90 is sm_90) in `jobs` processes.

    Returns:
        The number of kernels.

    Raises:
        AotError: a kernel cannot be compiled; nothing is written then.
    """
    chosen = [variant for variant in variants.variants() if wanted(variant.name)]
    kernels = []
    # Forked processes could inherit a lock of torch's threads.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        compiled = pool.map(_compile, chosen, [tuple(targets)] * len(chosen))
        for number, (variant, kernel) in enumerate(zip(chosen, compiled), 1):
            kernels.append((variant.name, kernel))
            report(f"[{number}/{len(chosen)}] {variant.name}")
    pack.write(output, importlib.metadata.version("triton"), kernels)
    return len(kernels)


def _compile(variant: variants.Variant, targets: tuple[int, ...]) -> Kernel:
    return compile_launch(variant.record(), targets)
