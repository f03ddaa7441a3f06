"""Measure what serving costs: every backend of an exported artifact, or the operators alone.

    python serve_bench.py --artifact OUT --output OUT/bench
    python serve_bench.py --artifact OUT --scenarios all --output OUT/bench
    python serve_bench.py --artifact OUT --backends onnxruntime --batch 1,4 --time 2304 --threads 1 --output OUT/bench
    python serve_bench.py --artifact OUT --url http://localhost:8080 --scenarios all --output OUT/bench
    python serve_bench.py --compare OLD NEW
    python serve_bench.py --kernels --output benchmarks/results

With --artifact, each backend that is present (the others are listed as skipped, with what brings them) is measured:

    sweep           every batch size with every length, the backends in turns on rotating inputs, after a warm-up
    SingleStream    MLPerf LoadGen: one video after the other
    MultiStream     LoadGen: groups of the largest batch, one after the other
    Server          LoadGen: a Poisson stream of videos, at --target_qps, or at the highest rate found that keeps
                    --p99_ms (default: ten times what the fastest backend takes for one video)
    Offline         LoadGen: as many videos as it takes, all at once

A LoadGen row carries LoadGen's verdict, VALID or INVALID with the reason, and its logs are kept. --quick (the default)
gives it two seconds and asks MultiStream and Server for the 90th percentile, --full 600 seconds, 662 queries and
the 99th. They take the longest of --time.

Before a backend is timed, its raw outputs are compared with those of the same weights in float64 on plain PyTorch
operators, and its detections with the detections of those outputs; with --annotations and --features also the mean
average precision on that set. In less than float32 the errors may be three times those of PyTorch, which for int8
multiplies in float32 what it rounded to the same integers (the row eager_plain); and a file in int8 is measured only
if it passed the gate of its export, whose mAP the report repeats. A backend that fails the comparison, or that runs
elsewhere than on --device, shows no speed, and the command exits 1. Speed-ups are against the published computation on
mamba-ssm's kernels where a GPU has them, else the detector on the plain operators (against `eager` where one such call
would take longer than a minute).

    OUTPUT/results.json     {"environment", "rows"}, as rdfa/bench/results.schema.json says
    OUTPUT/report.html      the same to look at; one file, no network
    OUTPUT/*.png            its pictures
    OUTPUT/history.csv      a line per row, of every run into this folder
    OUTPUT/loadgen/         LoadGen's own logs

With --url, a server of the Open Inference Protocol that serves the artifact, `python -m rdfa.serve` or Triton, takes
the backends' place (with the extra 'client'). A request carries one video, or --batch; Server and Offline keep up to
--connections under way. The environment in the results is the client's.

--compare prints what changed between two results by more than their noise, and exits 1 when a row became slower by more
than --bound, became invalid, or is skipped now.

With --kernels, the selective scan and the causal convolution are measured forward and backward over the shapes of the
detector that --gin_file and --gin_param describe (default: the published one), and OUTPUT gets kernels.csv,
kernels.json and kernels.png. On a CPU the C++ kernels are compared with the plain references, one call at a time. On a
GPU the fused kernels of a layer are compared with the CUDA kernels of mamba-ssm and causal-conv1d (where installed: the
extra 'reference'), the plain references, and the least time that the device allows, at batch 1, 4 and 16; without
--time also over powers of two up to 65536 steps; accuracy.csv compares the scans' errors. Times there are those of CUDA
graphs of many calls.

With --artifact, --gin_file and --gin_param set how detections are made of outputs (PostProcessing) and nothing else.

Latency is the wall-clock time of one call with arrays in host memory, the copies to a GPU included (--resident:
inputs lie on the GPU, outputs stay there). Which of two backends is the faster is told from neighbouring calls, in CPU
time with --threads 1 (see rdfa/bench/timing.py), and an A/A check says what a difference must exceed. A row's load
time, first inference and peak memory come from a process of its own. Pin the allocator to compare figures of two runs:

    MALLOC_MMAP_THRESHOLD_=34359738368 MALLOC_TRIM_THRESHOLD_=34359738368 python serve_bench.py ...

Exit codes: 0 all measured rows are valid; 1 a backend that is present failed, or a regression; 2 wrong invocation.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from rdfa import cli, config
from rdfa.errors import RunError, UsageError
from rdfa.files import folder_for
from rdfa.runtime import manifest as manifests

SCENARIOS = ("sweep", "SingleStream", "MultiStream", "Server", "Offline")
DTYPES = ("float32", "float16", "bfloat16", "int8")
DEVICES = ("auto", "cpu", "cuda")


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if args.compare:
        _compare(args, console)
    elif args.kernels:
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
    what.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="two results, or their folders")
    parser.add_argument("--backends", type=_names, default=(), metavar="A,B", help="all (default), or some by name")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument(
        "--scenarios", type=_names, default=("sweep",), metavar="A,B", help=f"all, or of {', '.join(SCENARIOS)}"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="LoadGen tests of seconds (default)")
    length.add_argument("--full", action="store_true", help="LoadGen tests of ten minutes each")
    parser.add_argument("--p99_ms", type=float, metavar="MS", help="bound on the 99th percentile in Server")
    parser.add_argument("--target_qps", type=float, metavar="R", help="rate of Server, in place of the search")
    parser.add_argument("--dtype", type=_names, default=DTYPES[:1], metavar="A,B", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--resident", action="store_true", help="inputs and outputs stay on the GPU")
    parser.add_argument("--annotations", metavar="A.json", help="ground truth of a set to measure mAP on")
    parser.add_argument("--features", nargs="+", metavar="DIR", help="its features")
    parser.add_argument("--subset", metavar="S", help="its subset (default: the test subset)")
    parser.add_argument("--bound", type=float, default=0.05, metavar="B", help="of --compare (default %(default)s)")
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
    parser.add_argument("--url", metavar="URL", help="measure this server: http://HOST:PORT or grpc://HOST:PORT")
    parser.add_argument("--model", metavar="NAME", help="its model (default: the detector)")
    parser.add_argument("--connections", type=int, default=8, metavar="N", help="requests under way (default 8)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the results go")
    config.add_flags(parser)
    args = parser.parse_args(argv)
    if not args.compare and args.output is None:
        raise UsageError("--output is missing: name the folder where the results go")
    args.scenarios = _choose("--scenarios", args.scenarios, SCENARIOS)
    args.dtype = _choose("--dtype", args.dtype, DTYPES)
    for name in ("p99_ms", "target_qps", "bound"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"--{name} {value}: give a positive number")
    if args.url and (not args.artifact or args.backends or args.resident or args.dtype != ("float32",)):
        raise UsageError("--url goes with --artifact, and without --backends, --resident and --dtype")
    if args.connections < 1:
        raise UsageError(f"--connections {args.connections}: give at least 1")
    if bool(args.annotations) != bool(args.features):
        raise UsageError("--annotations and --features go together: the mAP is measured on both")
    if args.seconds is not None and not 0 < args.seconds < float("inf"):
        raise UsageError(f"--seconds {args.seconds}: give a positive number")
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads}: give at least 1")
    return args


def _choose(flag: str, names: tuple[str, ...], valid: tuple[str, ...]) -> tuple[str, ...]:
    """The names in the order and spelling of `valid`."""
    if names == ("all",):
        return valid
    known = {name.lower(): name for name in valid}
    for name in names or ("",):
        if name.lower() not in known:
            raise UsageError(f"{flag}: {name!r} is unknown; valid: all, {', '.join(valid)}")
    return tuple(name for name in valid if name.lower() in {given.lower() for given in names})


def _artifact(args: argparse.Namespace, console: Console) -> None:
    manifest = manifests.read(args.artifact)
    from rdfa.bench import artifact_command, environment, reference, report
    from rdfa.bench.report import history
    from rdfa.evaluation.given_set import GivenSet

    given = args.annotations and GivenSet(args.annotations, tuple(args.features), args.subset)
    request = artifact_command.Request(
        artifact=args.artifact,
        output=args.output,
        backends=() if args.backends == ("all",) else args.backends,
        device=reference.resolve_device(args.device),
        dtypes=_dtypes(args.dtype, manifest),
        scenarios=args.scenarios,
        batches=args.batch,
        times=args.time,
        seconds=args.seconds or 1.0,
        threads=args.threads or environment.available_cores(),
        full=args.full,
        resident=args.resident,
        post=_post_processing(args, manifest["config"]),
        p99_s=args.p99_ms and args.p99_ms / 1e3,
        rate=args.target_qps,
        given=given,
    )
    # What would be told after everything was measured is told before.
    history.read(args.output / "history.csv")
    with folder_for("results.json", args.output), console.status("") as status:
        progress = _progress(console, status)
        if args.url:
            from rdfa.bench import remote_command

            machine, rows = remote_command.run(request, args.url, args.model, args.connections, progress)
        else:
            machine, rows = artifact_command.run(request, progress)
    report.write(args.output, machine, rows)
    history.append(args.output / "history.csv", machine, rows)
    report.print_table(machine, rows, console)
    console.print(f"report: {args.output / 'report.html'}", highlight=False, soft_wrap=True)
    failed = sorted({row.backend for row in rows if not row.valid and not row.skipped})
    if failed:
        raise RunError(f"{', '.join(failed)}: no speed shown, see the reasons above or in results.json")


def _dtypes(wanted: tuple[str, ...], manifest: dict) -> tuple[str, ...]:
    """Those asked for; of `all` without int8 where the artifact has no such file, since nothing else computes in it."""
    held = {entry.get("dtype") for entry in manifest["files"].values()}
    return tuple(dtype for dtype in wanted if dtype != "int8" or "int8" in held or wanted != DTYPES)


def _compare(args: argparse.Namespace, console: Console) -> None:
    from rdfa.bench import compare

    old, new = (compare.read(path) for path in args.compare)
    found = compare.changes(old, new)
    compare.print_changes(old, new, found, console)
    worse = compare.regressions(found, args.bound)
    if worse:
        names = ", ".join(sorted({str(change.key[0]) for change in worse}))
        raise RunError(f"{len(worse)} rows are worse by more than {args.bound:.0%}, invalid or skipped now: {names}")


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
    with folder_for("kernels.json", args.output), console.status("") as status:
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
