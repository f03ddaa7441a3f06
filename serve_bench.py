"""Measure what serving costs: every backend of an exported artifact, or the operators alone.

    python serve_bench.py --artifact OUT --output OUT/bench
    python serve_bench.py --artifact OUT --backends onnxruntime --batch 1,4 --time 2304 --threads 1 --output OUT/bench
    python serve_bench.py --kernels --output benchmarks/results

With --artifact, each backend that is present (the others are listed as skipped, with what brings them) runs every
batch size with every length. Before a backend is timed, its raw outputs are compared with those of the same weights in
float64 on plain PyTorch operators, and its detections with the detections of those outputs. A backend that fails the
comparison shows no speed, and the command exits 1. Speed-ups are against the row `eager_plain`: the detector on the
plain operators, in float32 (against `eager` where one such call would take longer than a minute).

    OUTPUT/results.json     {"environment", "rows"}, as rdfa/bench/results.schema.json says
    OUTPUT/report.html      the same to look at; one file, no network
    OUTPUT/latency.png      latency over time

With --kernels, the selective scan and the causal convolution are measured forward and backward over the shapes of the
detector that --gin_file and --gin_param describe (default: the published one), and OUTPUT gets kernels.csv,
kernels.json and kernels.png. On a CPU the C++ kernels are compared with the plain references, one call at a time. On a
GPU the fused kernels of a layer are compared with the CUDA kernels of mamba-ssm and causal-conv1d (where installed: the
extra 'reference'), the plain references, and the least time that the device allows, at batch 1, 4 and 16; without
--time also over powers of two up to 65536 steps; accuracy.csv compares the scans' errors. Times there are those of CUDA
graphs of many calls.

With --artifact, --gin_file and --gin_param set how detections are made of outputs (PostProcessing) and nothing else.

Latency is the time of one call with arrays in host memory, the copies included. Backends take turns within one process,
after a warm-up, on rotating inputs. A row's load time, first inference and peak memory come from a process of its own.
Pin the allocator when figures are to be compared between runs:

    MALLOC_MMAP_THRESHOLD_=34359738368 MALLOC_TRIM_THRESHOLD_=34359738368 python serve_bench.py ...

Exit codes: 0 all measured rows are valid; 1 a backend that is present failed; 2 wrong invocation.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from rdfa import cli, config
from rdfa.errors import RunError, UsageError
from rdfa.runtime import manifest as manifests

SCENARIOS = ("sweep",)
DEVICES = ("auto", "cpu", "cuda")


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if args.kernels:
        _kernels(args, console)
    else:
        _artifact(args, console)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="serve_bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--artifact", type=Path, metavar="DIR", help="measure the artifact that export.py wrote there")
    what.add_argument("--kernels", action="store_true", help="measure the operators alone")
    parser.add_argument("--backends", type=_names, default=(), metavar="A,B", help="all (default), or some by name")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument(
        "--scenarios", type=_names, default=SCENARIOS, metavar="A,B", help="sweep (the only one so far)"
    )
    parser.add_argument(
        "--batch",
        type=_integers,
        default=(),
        metavar="1,2",
        help="batch sizes (default 1,2; --kernels: 1 on a CPU, 1,4,16 on a GPU)",
    )
    parser.add_argument(
        "--time", type=_integers, default=(), metavar="576,2304", help="lengths (default: clip length and a quarter)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of one call (default: all cores)")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time budget per row (default 1; --kernels: 0.3 on a CPU, 0.03 on a GPU)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the results go")
    config.add_flags(parser)
    args = parser.parse_args(argv)
    for name in args.scenarios:
        if name not in SCENARIOS:
            raise UsageError(f"--scenarios: {name!r} is unknown; valid: {', '.join(SCENARIOS)}")
    if args.seconds is not None and not 0 < args.seconds < float("inf"):
        raise UsageError(f"--seconds {args.seconds}: give a positive number")
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads}: give at least 1")
    return args


def _artifact(args: argparse.Namespace, console: Console) -> None:
    manifest = manifests.read(args.artifact)
    from rdfa import runtime
    from rdfa.bench import detector, environment, parity, reference, report

    threads = args.threads or environment.available_cores()
    oracle = reference.PlainDetector(args.artifact, threads, _post_processing(args, manifest["config"]))
    sweep = detector.Sweep(
        artifact=args.artifact,
        backends=() if args.backends == ("all",) else args.backends,
        device=reference.resolve_device(args.device),
        shapes=detector.make_shapes(manifest["features"], args.batch, args.time),
        channels=manifest["features"]["dimension"],
        seconds=args.seconds or 1.0,
        threads=threads,
    )
    machine = environment.describe(threads)
    with console.status("") as status:
        rows = detector.run(
            sweep,
            runtime,
            oracle,
            native_operators=reference.native_operators(),
            progress=_progress(console, status),
        )
    machine["benchmark"] = {
        **reference.describe(args.artifact),
        "device": sweep.device,
        "seconds_per_row": sweep.seconds,
        "tolerance": parity.TOLERANCE,
    }
    report.write(args.output, machine, rows)
    report.print_table(machine, rows, console)
    console.print(f"report: {args.output / 'report.html'}", highlight=False, soft_wrap=True)
    failed = sorted({row.backend for row in rows if not row.valid and not row.skipped})
    if failed:
        raise RunError(f"{', '.join(failed)}: no speed shown, see the reasons above or in results.json")


def _kernels(args: argparse.Namespace, console: Console) -> None:
    from rdfa.bench import environment, kernel_command, reference

    device = reference.resolve_device(args.device)
    if device == "cuda" and reference.resolve_device("auto") != device:
        raise UsageError("--kernels --device cuda: torch finds no CUDA device here; use --device cpu")
    request = kernel_command.Request(
        model=config.from_args(args).model,
        output=args.output,
        threads=args.threads or environment.available_cores(),
        batches=args.batch,
        lengths=args.time,
        seconds=args.seconds,
    )
    measure = kernel_command.on_gpu if device == "cuda" else kernel_command.on_cpu
    with console.status("") as status:
        rows = measure(request, console, _progress(console, status))
    console.print(f"results: {args.output / 'kernels.csv'}", highlight=False, soft_wrap=True)
    if any(row.verdict.startswith("invalid") for row in rows):
        raise RunError("a kernel differs from its reference: see the table above")


def _post_processing(args: argparse.Namespace, operative: str):
    """Post-processing of the artifact's configuration with the flags applied, which may change nothing else."""
    stored = config.from_text(operative)
    changed = config.from_args(args) if args.gin_file else config.from_text(operative, args.gin_param)
    others = [line for line in config.differences(stored, changed) if not line.startswith("PostProcessing.")]
    if others and not args.gin_file:
        raise UsageError(f"an artifact is measured as it is: only PostProcessing can be set, not {others[0]}")
    return changed.post


def _progress(console: Console, status):
    """A spinner with the current step on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        return status.update
    return lambda line: print(line, file=sys.stderr, flush=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _integers(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positive integers: write for example 1,2")
    return values


if __name__ == "__main__":
    sys.exit(cli.run(main))
