"""Export a run as files that other programs load, and prove each one equal to the detector before keeping it.

    python export.py --run_dir runs/demo --output artifacts/demo --formats torchscript,onnx
    python export.py --run_dir runs/thumos14 --checkpoint runs/thumos14/checkpoints/step_00010000 \\
        --output artifacts/thumos14 --formats onnx

writes OUTPUT/manifest.json (configuration, features, classes, hashes, parity), model.safetensors, and of the formats

    torchscript   detector.ts.pt with librdfa_ops.so     libtorch, no Python needed (GPU: python -m ops.aot first)
    onnx          detector.onnx, and librdfa_ort.so      ONNX Runtime on CPUs, several times as fast with the library
    onnx_gpu      detector.gpu.onnx, and librdfa_ort.so  ONNX Runtime on GPUs: no control flow
    onnx_inlined  detector.inlined.onnx                  OpenVINO, and whatever else knows no functions of a model
    aoti          detector.pt2 with librdfa_ops.so       torch or libtorch, compiled for this kind of processor

aoti is written only when --formats names it: it needs a C++ compiler and takes a minute or two. librdfa_ort.so is added
where it was built (python -m ops.build --onnxruntime_headers DIR), librdfa_ops.cubins, the kernels for GPUs of both
libraries, where python -m ops.aot made it.

With --dtype float32,float16,bfloat16 each file is written in float16 too, torchscript and aoti in bfloat16 as well
(detector.float16.onnx, detector.ts.bfloat16.pt, ...): half the size, for GPUs; inputs and outputs stay float32.
int8 is of TorchScript and AOTInductor on CPUs: the large products in int8, everything else in float32. Such a file is
kept only if its average mAP on annotated videos is at most --max_map_loss below that of float32; both are in the
manifest:

    python export.py --run_dir runs/thumos14 --output artifacts/thumos14 --dtype float32,int8 \\
        --annotations annotations/thumos14.json --features features/thumos14 --subset Test

--device cuda, on a machine with a GPU, writes torchscript and aoti for that kind of GPU instead of for CPUs.

--triton_repository DIR writes the same files once more, as Triton Inference Server wants them, with a README of the
command that starts it; it needs tritonclient (pip install 'rdfa-s6[triton_server]').

The averaged (EMA) weights of the best checkpoint are exported unless --checkpoint names another. A file that differs
from the detector at any of three sizes that were not traced ends the export with code 1, and nothing is written. The
manifest says of each file how long loading and the first video take in a new process.
"""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from rdfa import cli
from rdfa.errors import UsageError


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", required=True, metavar="RUN", help="run directory, as train.py writes it")
    parser.add_argument("--checkpoint", metavar="PATH", help="best, latest or a step folder (default: best)")
    parser.add_argument("--output", required=True, metavar="OUT", help="artifact directory to make, or to replace")
    parser.add_argument("--formats", default="torchscript,onnx", help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--triton_repository", metavar="DIR", help="model repository for Triton Inference Server, made from OUT"
    )
    parser.add_argument(
        "--dtype", default="float32", help="comma-separated: float32,float16,bfloat16,int8 (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="of torchscript and aoti: cpu or cuda (default: %(default)s)")
    gate = parser.add_argument_group("the gate of int8")
    gate.add_argument("--annotations", metavar="A.json", help="ground truth of the videos to measure mAP on")
    gate.add_argument("--features", nargs="+", metavar="DIR", help="their features")
    gate.add_argument("--subset", metavar="S", help="of the annotations (default: the test subset)")
    gate.add_argument("--max_map_loss", type=float, metavar="X", help="of average mAP (default 0.005)")
    args = parser.parse_args(argv)
    if bool(args.annotations) != bool(args.features):
        raise UsageError("--annotations and --features go together: the mAP is measured on both")
    if (args.subset or args.max_map_loss is not None) and not args.annotations:
        raise UsageError("--subset and --max_map_loss are of the gate of int8: give --annotations and --features")
    # After the flags are known to be good: this imports torch.
    from rdfa import deploy
    from rdfa.deploy import triton_repository

    if args.triton_repository:
        triton_repository.check(args.triton_repository)
    console = Console(width=None if sys.stdout.isatty() else 120)  # room for the table, wherever it goes
    with console.status("reading the run") as status:

        def report(step: str) -> None:
            status.update(step)
            if not console.is_terminal:
                console.print(step)

        formats, dtypes = ([word.strip() for word in flag.split(",")] for flag in (args.formats, args.dtype))
        manifest = deploy.export(
            args.run_dir, args.output, args.checkpoint, formats, dtypes, report, args.device, _gate(args)
        )
    console.print(_table(manifest))
    for name, entry in manifest["files"].items():
        if "map_gate" in entry:
            measured = "{average_map:.4f}, float32 {float32_average_map:.4f}".format(**entry["map_gate"])
            console.print(f"{name}: average mAP {measured}", highlight=False)
    console.print(f"written to {args.output}", highlight=False)
    if args.triton_repository:
        models = triton_repository.write(args.output, args.triton_repository)
        console.print(f"{', '.join(models)}: {args.triton_repository}", highlight=False)


def _gate(args: argparse.Namespace):
    from rdfa.deploy.map_gate import MAX_LOSS, MapGate
    from rdfa.evaluation.given_set import GivenSet

    if not args.annotations:
        return None
    max_loss = MAX_LOSS if args.max_map_loss is None else args.max_map_loss
    return MapGate(GivenSet(args.annotations, tuple(args.features), args.subset), max_loss)


def _table(manifest: dict) -> Table:
    table = Table(title="largest difference from the detector in float64, at (batch, time)", box=None, padding=(0, 1))
    for heading in ("file", "size", "load", "first"):
        table.add_column(heading, justify="left" if heading == "file" else "right", no_wrap=True)
    checked = [entry for entry in manifest["files"].values() if "parity" in entry]
    for row in checked[0]["parity"]:
        table.add_column(f"({row['batch']}, {row['time']})", justify="right", no_wrap=True)
    for name, entry in manifest["files"].items():
        cells = [f"{row['max_abs']:.1e} ✓" for row in entry.get("parity", [])]
        start = entry.get("start")
        times = [f"{start['load_s']:.2f} s", f"{start['first_inference_ms']:.0f} ms"] if start else ["", ""]
        table.add_row(name, f"{entry['size'] / 1e6:.1f} MB", *times, *cells)
    return table


if __name__ == "__main__":
    sys.exit(cli.run(main))
