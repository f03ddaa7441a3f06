"""`serve_bench.py --kernels`: measure, write, print."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ops import library
from rdfa.bench import (
    environment,
    gpu_accuracy,
    gpu_cases,
    gpu_kernels,
    gpu_limits,
    gpu_warmup,
    kernel_cases,
    kernel_report,
    kernels,
)
from rdfa.bench.kernel_rows import KernelRow
from rdfa.modeling.settings import ModelSettings

CPU_BATCHES, CPU_SECONDS = (1,), 0.3
# A GPU's samples hold many calls each, and there are some 600 rows.
GPU_BATCHES, GPU_SECONDS = (1, 4, 16), 0.03

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is measured. Empty `batches` and `lengths` and no `seconds` are the device's defaults."""

    model: ModelSettings
    output: Path
    threads: int
    batches: Sequence[int] = ()
    lengths: Sequence[int] = ()
    seconds: float | None = None


def on_cpu(request: Request, console: Console, progress: Progress) -> list[KernelRow]:
    machine = environment.describe(request.threads)
    rows = kernels.run(
        [
            case
            for length in request.lengths or (request.model.generator.max_seq_len,)
            for case in kernel_cases.cases(request.model, request.batches or CPU_BATCHES, length)
        ],
        request.seconds or CPU_SECONDS,
        request.threads,
        native_available=library.loaded(),
        progress=progress,
    )
    kernel_report.stamp(rows, machine)
    kernel_report.write(request.output, machine, rows)
    _print(console, "", kernel_report.COLUMNS, kernel_report.cells(rows), environment.summary(machine))
    return rows


def on_gpu(request: Request, console: Console, progress: Progress) -> list[KernelRow]:
    """Rows that were measured before a failure are written all the same."""
    limits = gpu_limits.probe()
    setup = gpu_kernels.Setup(request.seconds or GPU_SECONDS, limits, threads=request.threads)
    chosen = gpu_cases.cases(request.model, request.batches or GPU_BATCHES, request.lengths)
    scans = gpu_accuracy.cases(request.model.stem.emb_c)
    work = gpu_warmup.jobs(chosen, gpu_kernels.DTYPES.values()) + gpu_warmup.jobs(scans, gpu_accuracy.DTYPES.values())
    gpu_warmup.run(list(dict.fromkeys(work)), request.threads, progress)
    rows: list[KernelRow] = []
    accuracy: list[gpu_accuracy.AccuracyRow] = []
    try:
        for row in gpu_kernels.run(chosen, setup, progress):
            rows.append(row)
        accuracy += gpu_accuracy.run(scans, progress=progress)
    finally:
        # Described now: the clocks are those of a GPU at work.
        machine = environment.describe(request.threads)
        machine["benchmark"] = {"seconds_per_row": setup.seconds, "limits": asdict(limits)}
        kernel_report.stamp([*rows, *accuracy], machine)
        kernel_report.write(request.output, machine, rows, accuracy)
    caption = environment.summary(machine)
    for kernel in dict.fromkeys(row.kernel for row in rows):
        of_kernel = [row for row in rows if row.kernel == kernel]
        _print(console, kernel, kernel_report.GPU_COLUMNS, kernel_report.gpu_cells(of_kernel), caption)
        for note in kernel_report.gpu_notes(of_kernel):
            console.print(note, highlight=False, markup=False)
    title = "selective_scan: relative L2 error against float64"
    _print(console, title, kernel_report.ACCURACY_COLUMNS, kernel_report.accuracy_cells(accuracy), caption)
    return rows


def _print(
    console: Console, title: str, columns: Sequence[str], lines: Iterator[tuple[str, ...]], caption: str
) -> None:
    table = Table(*columns, title=title, title_justify="left", caption=caption, caption_justify="left")
    for cells in lines:
        table.add_row(*cells)
    console.print(table)
