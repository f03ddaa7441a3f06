"""Compile our kernels for a list of cases, several at a time, before anything is measured.

A Triton kernel takes up to a minute to compile, on one core, and is kept on disk afterwards. So each case is run once
by one of several processes, which share nothing but Triton's cache; the measuring process then finds it filled.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from dataclasses import replace

import torch

from rdfa.bench.gpu_cases import FusedCase
from rdfa.bench.gpu_providers import ours, verdict_of
from rdfa.bench.kernel_rows import MODES

# Kernels differ by what divides the length and not by the length: shorter sequences compile the same ones.
SHORTENED = 1024
# Each process holds a CUDA context and the tensors of a case.
MOST_PROCESSES = 16

Job = tuple[FusedCase, torch.dtype]


def jobs(cases: Iterable[FusedCase], dtypes: Iterable[torch.dtype]) -> list[Job]:
    """Cases, shortened, and dtypes that may need kernels of their own."""

    def shortened(case: FusedCase) -> FusedCase:
        fits = case.length < 2 * SHORTENED
        return replace(case, layer="", length=case.length if fits else SHORTENED + case.length % SHORTENED)

    return list(dict.fromkeys((shortened(case), dtype) for case in cases for dtype in dtypes))


def _processes(count: int) -> Executor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def run(
    work: Sequence[Job],
    processes: int,
    progress: Callable[[str], None],
    pool: Callable[[int], Executor] = _processes,
) -> None:
    """Compile what `work` needs. What fails here fails again where it is measured, and is reported there."""
    processes = max(1, min(processes, MOST_PROCESSES, len(work)))
    progress(f"compiling the kernels of {len(work)} cases in {processes} processes, unless they are cached")
    try:
        with pool(processes) as executor:
            pending = [executor.submit(_compile, *job) for job in work]
            failures = [f.exception() for f in as_completed(pending) if f.exception() is not None]
    except BrokenExecutor as error:
        failures = [error]
    if failures:
        progress(f"{len(failures)} cases did not compile ahead: {verdict_of(failures[0])}")


def _compile(case: FusedCase, dtype: torch.dtype, device: str = "cuda") -> None:
    inputs = case.inputs(device, dtype)
    for mode in MODES:
        stage = ours(case, mode, inputs)
        stage.call(stage.arguments)
    torch.cuda.empty_cache()  # the processes share the device's memory
