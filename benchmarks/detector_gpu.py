"""The whole detector on a GPU: every way to run it against the published computation on mamba-ssm's kernels.

    python -m benchmarks.detector_gpu --output benchmarks/results/h100_detector

The model is that of gin/thumos14.gin (23.15 million parameters) with random weights, at batch 1, 4 and 16 and T = 2304,
in bfloat16, float16 and float32, inputs on the GPU. The reference row needs the compiled modules of mamba-ssm and
causal-conv1d (the extra 'reference'). The result is what serve_bench.py writes, and is written anew after each dtype,
so that a run which is cut short leaves what it had.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from rdfa import cli, config
from rdfa.bench import artifact_command, environment, report
from rdfa.deploy import manifest as manifests
from rdfa.errors import RunError
from rdfa.modeling.detector import build_detector
from rdfa.modeling.layers import AffineDropPath
from rdfa.run_dir import write_weights

GIN_FILE = Path(__file__).resolve().parents[1] / "gin" / "thumos14.gin"
DTYPES = ("bfloat16", "float16", "float32")
BACKENDS = ("published", "eager", "torch_compile", "cuda_graph")
# A fresh detector's layer scales of 1e-4 would hide nearly all of it from the outputs, and from the comparison of them.
LAYER_SCALE = 0.1


def configuration(gin_params: list[str]) -> config.Config:
    """That of THUMOS14, without its data."""
    return config.load([GIN_FILE], ["Dataset.annotation_file = ''", "Dataset.feature_dir = ''", *gin_params])


def write_artifact(directory: Path, gin_params: list[str]) -> None:
    """An artifact that holds weights alone, all of which show in the outputs."""
    settings = configuration(gin_params)
    torch.manual_seed(0)
    detector = build_detector(settings.model)
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, AffineDropPath):
                module.scale.fill_(LAYER_SCALE)
    classes = [f"class_{label}" for label in range(settings.model.cls_head.num_classes)]
    manifest = manifests.describe(settings, classes, {"run": "random weights", "checkpoint": "", "weights": ""})
    directory.mkdir()
    path = directory / "model.safetensors"
    write_weights(path, detector.state_dict())
    manifests.add_file(manifest, path, "safetensors", dtype="float32", **manifests.interface(settings))
    manifests.write(directory, manifest)


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", default="1,4,16", metavar="1,4")
    parser.add_argument("--time", type=int, default=2304, metavar="T")
    parser.add_argument("--dtype", default=",".join(DTYPES), metavar="A,B")
    parser.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="time budget per row")
    parser.add_argument("--gin_param", action="append", default=[], metavar="X.Y=V", help="change the model")
    args = parser.parse_args(argv)
    console = Console(width=180)
    rows, machine = [], {}
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "thumos14_random"
        write_artifact(artifact, args.gin_param)
        for dtype in args.dtype.split(","):
            peaks = machine.get("peaks", {}).get("matmul_gflops", {})
            machine, found = artifact_command.run(_request(args, artifact, dtype), console.print)
            machine["peaks"]["matmul_gflops"] |= peaks
            rows += found
            report.write(args.output, machine, rows)
    report.print_table(machine, rows, console)
    failed = sorted({f"{row.backend} {row.dtype}" for row in rows if not row.valid and not row.skipped})
    if failed:
        raise RunError(f"{', '.join(failed)}: no speed shown, see the reasons above")


def _request(args: argparse.Namespace, artifact: Path, dtype: str) -> artifact_command.Request:
    return artifact_command.Request(
        artifact=artifact,
        output=args.output,
        backends=tuple(args.backends.split(",")),
        device=args.device,
        dtypes=(dtype,),
        scenarios=(artifact_command.SWEEP,),
        batches=tuple(map(int, args.batch.split(","))),
        times=(args.time,),
        seconds=args.seconds,
        threads=environment.available_cores(),
        full=False,
        resident=args.device == "cuda",
        post=configuration(args.gin_param).post,
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
