"""Decoding + NMS of one video: the native call against the plain loop, one thread, equal results required.

    python -m benchmarks.cpu_nms
    python -m benchmarks.cpu_nms --output benchmarks/results/cpu_nms.json

Inputs are random outputs of a detector with six pyramid levels and the published settings (soft NMS within each class,
2,000 candidates per level, 200 detections). Times are CPU time of the process, so that other work on the machine
disturbs them less: the least and the median of the repetitions.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from ops import decode_nms, library
from ops.nms.reference import decode_reference, nms_reference
from rdfa import cli
from rdfa.bench import environment

SIZES = [(20, 5_000), (200, 11_000)]  # classes, candidates before NMS
LEVELS, FINEST = 6, 2304
DECODING = {"pre_nms_thresh": 0.001, "pre_nms_topk": 2000, "duration_thresh": 0.05}
NMS = {
    "multiclass": True,
    "iou_threshold": 0.1,
    "min_score": 0.001,
    "max_seg_num": 200,
    "sigma": 0.5,
    "voting_thresh": 0.7,
}
REPETITIONS = {"native": 40, "loop": 3}


def make_outputs(classes: int, candidates: int) -> tuple[torch.Tensor, ...]:
    """Random outputs whose logits are shifted so that about `candidates` survive decoding."""
    g = torch.Generator().manual_seed(0)
    strides = torch.cat([torch.full((FINEST >> level,), 2.0**level) for level in range(LEVELS)])
    t = torch.cat([torch.arange(FINEST >> level) * 2.0**level for level in range(LEVELS)])
    points = torch.stack([t, torch.zeros_like(t), torch.full_like(t, 1e4), strides], dim=1)
    noise, offsets = torch.randn(len(t), classes, generator=g) * 2, torch.rand(len(t), 2, generator=g) * 6
    mask = torch.ones(len(t), dtype=torch.bool)
    low, high = -30.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        found = len(decode_reference(noise + middle, offsets, mask, points, **DECODING)[1])
        low, high = (middle, high) if found < candidates else (low, middle)
    return noise + high, offsets, mask, points


def cpu_milliseconds(function, repetitions: int) -> dict[str, float]:
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        function()
        times.append((time.process_time() - start) * 1e3)
    return {"min": min(times), "median": statistics.median(times)}


def measure(classes: int, candidates: int) -> dict:
    outputs = make_outputs(classes, candidates)

    def native():
        return decode_nms(*outputs, **DECODING, **NMS)

    def loop():
        return nms_reference(*decode_reference(*outputs, **DECODING), "soft", **NMS)

    equal = all(torch.equal(a, b) for a, b in zip(native(), loop()))
    times = {name: cpu_milliseconds(f, REPETITIONS[name]) for name, f in (("native", native), ("loop", loop))}
    return {
        "classes": classes,
        "candidates": len(decode_reference(*outputs, **DECODING)[1]),
        "native_cpu_ms": times["native"],
        "loop_cpu_ms": times["loop"],
        "speedup": times["loop"]["median"] / times["native"]["median"] if equal else None,
        "equal": equal,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_nms",
        description="Measure decoding + NMS: the native call against the plain loop.",
        epilog="example: python -m benchmarks.cpu_nms --output benchmarks/results/cpu_nms.json",
    )
    parser.add_argument("--output", type=Path, help="also write the figures and the machine to this JSON file")
    args = parser.parse_args(argv)
    library.require()
    torch.set_num_threads(1)
    machine = environment.describe(threads=1)
    rows = [measure(*size) for size in SIZES]

    print(environment.summary(machine))
    print(f"{'classes':>8}{'candidates':>12}{'native ms':>11}{'loop ms':>10}{'speed-up':>10}{'equal':>7}")
    for row in rows:
        times = f"{row['native_cpu_ms']['median']:>11.2f}{row['loop_cpu_ms']['median']:>10.1f}"
        speedup = f"{row['speedup']:.0f}x" if row["equal"] else "-"
        print(f"{row['classes']:>8}{row['candidates']:>12}{times}{speedup:>10}{'yes' if row['equal'] else 'NO':>7}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.output.with_name(f".{args.output.name}.tmp")
        temporary.write_text(json.dumps({"environment": machine, "rows": rows}, indent=1) + "\n")
        os.replace(temporary, args.output)


if __name__ == "__main__":
    sys.exit(cli.run(main))
