"""Selective scan on one CPU thread: the C++ kernels against the machine's FMA rate and against plain PyTorch.

    python -m benchmarks.cpu_selective_scan
    python -m benchmarks.cpu_selective_scan --output benchmarks/results/cpu_selective_scan.json

Softplus, gate, D and delta_bias are included; ns are per element, one (b, d, n, l). Everything is measured in one run
and in turns, each call after an untimed one of its kind, as CPU time of the process, medians. Two plain baselines:
`reference` is ops.selective_scan.reference, a loop that touches one step at a time; `materialised` is the usual order
of plain implementations, which first computes exp(dt A) and dt B u for all steps, [B,D,N,L] each, and then loops. The
limit is the time that the multiplications and FMAs of the kernel take at the rate measured here; no row is printed
with a time whose values or gradients were wrong.
"""

import argparse
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from ops import library, selective_scan
from ops.selective_scan.reference import selective_scan_reference
from rdfa import cli
from rdfa.bench import environment
from rdfa.errors import RunError

SHAPES = [(1, 512, 16, 2304), (6, 512, 16, 2304), (1, 576, 16, 512), (2, 512, 16, 72)]  # B, D, N, L
LAYOUTS = ("BLD", "BDL")  # memory order
ROUNDS = {"forward": 15, "training forward": 15, "backward": 15, "reference": 3, "materialised": 3}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")

# Multiplications and FMAs of the AVX-512 kernel. Per element: dt A, degree 3 and the table of the exponential, dt u B,
# the state, y. Per (b, d, l): two exponentials of 6, 6 of softplus, 3 other products; two divisions are not counted.
FMA_PER_ELEMENT, FMA_PER_STEP = 8, 21

FMA_SOURCE = """
extern "C" void run(long repetitions) {
  for (long i = 0; i < repetitions; ++i) {
    asm volatile(
        FMA(2) FMA(3) FMA(4) FMA(5) FMA(6) FMA(7) FMA(8) FMA(9) FMA(10) FMA(11) FMA(12) FMA(13)
        ::: "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13");
  }
}
"""


class FmaRate:
    """Measures how many float32 lanes per nanosecond one thread multiplies and adds, with the widest registers."""

    CHAINS, REPETITIONS = 12, 20_000

    def __init__(self, folder: str):
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        self.lanes, register = (16, "zmm") if wide else (8, "ymm")
        define = f'#define FMA(r) "vfmadd213ps %%{register}1, %%{register}0, %%{register}" #r "\\n"\n'
        source, target = Path(folder, "fma.cpp"), Path(folder, "fma.so")
        source.write_text(define + FMA_SOURCE)
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", source, "-o", target], check=True)
        self._run = ctypes.CDLL(str(target)).run
        self._run.argtypes = [ctypes.c_long]

    def measure(self) -> float:
        best = math.inf  # the first runs find the wide pipes asleep
        for _ in range(10):
            start = time.process_time()
            self._run(self.REPETITIONS)
            best = min(best, time.process_time() - start)
        return self.REPETITIONS * self.CHAINS * self.lanes / best * 1e-9


def make_inputs(shape: tuple[int, ...], layout: str) -> dict[str, torch.Tensor]:
    B, D, N, L = shape
    g = torch.Generator().manual_seed(0)

    def sequence(channels):
        x = torch.randn(B, channels, L, generator=g)
        return x.transpose(1, 2).contiguous().transpose(1, 2) if layout == "BLD" else x

    A = -torch.exp(torch.randn(D, N, generator=g))
    rest = (torch.randn(D, generator=g), sequence(D), 0.1 * torch.randn(D, generator=g))
    return dict(zip(NAMES, (sequence(D), sequence(D) - 4, A, sequence(N), sequence(N), *rest)))


def materialised(u, delta, A, B, C, D, z, delta_bias):
    """The same result in the usual order of plain implementations."""
    dt = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u)
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + inputs[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return (torch.stack(outputs, dim=2) + u * D[:, None]) * F.silu(z)


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return ((value - truth).abs().max() / truth.abs().max()).item()


def largest_errors(inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Against the reference in float64, relative to the largest value; 128 steps of one batch element."""
    short = {k: t[:1, :, :128] if t.dim() == 3 else t for k, t in inputs.items()}

    def run(function, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in short.values()]
        y = function(*leaves, delta_softplus=True)
        return y.detach(), torch.autograd.grad(y.square().sum(), leaves)

    (y, gradients), (y_truth, truths) = run(selective_scan, torch.float32), run(selective_scan_reference, torch.float64)
    return {"y": relative_error(y, y_truth)} | {
        f"d{k}": relative_error(g, t) for k, g, t in zip(NAMES, gradients, truths)
    }


def measure(shape: tuple[int, ...], layout: str, rate: FmaRate, baselines: bool) -> dict:
    inputs = make_inputs(shape, layout)
    leaves = [t.detach().requires_grad_() for t in inputs.values()]
    grad_y = torch.randn_like(inputs["u"])
    samples: dict[str, list[float]] = {name: [] for name in ROUNDS}
    rates = []

    def timed(name, function):
        if len(samples[name]) < ROUNDS[name]:
            function()  # untimed: the heap and the caches are as a call of another kind has left them
            start = time.process_time()
            result = function()
            samples[name].append(time.process_time() - start)
            return result
        return None

    with torch.no_grad():
        y = selective_scan(*inputs.values(), delta_softplus=True)
    for _ in range(max(ROUNDS.values())):
        rates.append(rate.measure())
        with torch.no_grad():
            timed("forward", lambda: selective_scan(*inputs.values(), delta_softplus=True))
            if baselines:
                timed("reference", lambda: selective_scan_reference(*inputs.values(), delta_softplus=True))
                timed("materialised", lambda: materialised(*inputs.values()))
        out = timed("training forward", lambda: selective_scan(*leaves, delta_softplus=True))
        timed("backward", lambda out=out: torch.autograd.grad(out, leaves, grad_y, retain_graph=True))
    errors = largest_errors(inputs)
    with torch.no_grad():
        errors["materialised"] = relative_error(materialised(*inputs.values()), y) if baselines else 0.0
    medians = {k: statistics.median(v) for k, v in samples.items() if v}
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    limit = (FMA_PER_ELEMENT + FMA_PER_STEP / shape[2]) / statistics.median(rates)
    return {
        "shape": dict(zip("BDNL", shape)),
        "layout": layout,
        "errors": errors,
        "correct": all(error < 1e-5 for error in errors.values()),
        "cpu_ms": {k: v * 1e3 for k, v in medians.items()},
        "ns_per_element": {k: v * 1e9 / elements for k, v in medians.items()},
        "fma_gflops": 2 * statistics.median(rates),
        "fma_limit_ns": limit,
        "fraction_of_fma_limit": limit * elements * 1e-9 / medians["forward"],
        "backward_over_forward": medians["backward"] / medians["forward"],
        "speedup": {k: medians[k] / medians["forward"] for k in ("reference", "materialised") if k in medians},
    }


COLUMNS = (  # title, width, cell of a row
    ("B x D x N x L", 18, lambda r: " x ".join(str(v) for v in r["shape"].values())),
    ("order", 6, lambda r: r["layout"]),
    ("GFLOP/s", 8, lambda r: f"{r['fma_gflops']:.0f}"),
    ("fwd ns", 7, lambda r: f"{r['ns_per_element']['forward']:.3f}"),
    ("of limit", 9, lambda r: f"{r['fraction_of_fma_limit']:.0%}"),
    ("train", 6, lambda r: f"{r['ns_per_element']['training forward']:.3f}"),
    ("bwd", 6, lambda r: f"{r['ns_per_element']['backward']:.3f}"),
    ("bwd/fwd", 8, lambda r: f"{r['backward_over_forward']:.2f}"),
    ("vs reference", 13, lambda r: f"{r['speedup']['reference']:.0f}x" if r["speedup"] else "-"),
    ("vs materialised", 16, lambda r: f"{r['speedup']['materialised']:.0f}x" if r["speedup"] else "-"),
)


def print_table(rows: list[dict]) -> None:
    print("".join(f"{title:>{width}}" for title, width, _ in COLUMNS))
    for row in rows:
        cells = [f"{cell(row):>{width}}" for _, width, cell in COLUMNS]
        print("".join(cells if row["correct"] else [*cells[:2], f"  WRONG RESULTS: {row['errors']}"]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_selective_scan",
        description="Measure the selective scan on one CPU thread.",
        epilog="example: python -m benchmarks.cpu_selective_scan --output benchmarks/results/cpu_selective_scan.json",
    )
    parser.add_argument("--output", type=Path, help="also write the figures and the machine to this JSON file")
    args = parser.parse_args(argv)
    library.require()
    torch.set_num_threads(1)
    machine = environment.describe(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        rate = FmaRate(folder)
        # The large batch has no baseline: materialising it takes gigabytes.
        rows = [measure(s, layout, rate, layout == "BDL" and s[0] < 6) for s in SHAPES for layout in LAYOUTS]

    print(environment.summary(machine))
    print_table(rows)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.output.with_name(f".{args.output.name}.tmp")
        temporary.write_text(json.dumps({"environment": machine, "rows": rows}, indent=1) + "\n")
        os.replace(temporary, args.output)
    if not all(row["correct"] for row in rows):
        raise RunError("wrong results (see the table): rebuild the library with python -m ops.build --force")


if __name__ == "__main__":
    sys.exit(cli.run(main))
