"""The whole detector on a CPU, step by step from the published order of operations, each with the gain it should bring.

    python -m benchmarks.cpu_detector
    python -m benchmarks.cpu_detector --threads 2 --aoti --output benchmarks/results/cpu_detector_2.json

gin/thumos14.gin with random weights, B=1, T=2304, float32 unless a row says otherwise. All rows are measured in turns
in one process, each run after the others have had the caches; the figures are the least of all rounds: CPU time of the
process with one thread, wall time with several, which a machine at rest is needed for. glibc's allocator keeps its
memory (the program starts itself again with these settings), since page faults would otherwise be 15 %.

The floor is the model's matrix products at the rate of oneDNN's packed product, measured here on the largest of them,
and the scans as measured here. Predictions: products by their operations and the rates measured here, passes over
activations by their bytes and the rate of a copy.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.published_order import PublishedOrder
from ops import library
from ops.rows import block as rows
from ops.rows.linear import linear, pack, pack_int8
from rdfa import cli
from rdfa.bench import environment
from rdfa.config import load
from rdfa.deploy import aoti, torchscript
from rdfa.deploy import manifest as manifests
from rdfa.errors import RunError
from rdfa.inference.results import write_json
from rdfa.modeling.detector import build_detector
from rdfa.modeling.folded import fold
from rdfa.runtime.parity import compare
from rdfa.runtime.session import Outputs

GIN = Path(__file__).parent.parent / "gin" / "thumos14.gin"
TIME, WIDTH, STATES, GATE = 2304, 512, 16, 576
PASSES, LEVELS = 4, tuple(TIME >> level for level in range(6))
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "34359738368", "MALLOC_TRIM_THRESHOLD_": "34359738368"}
LARGEST = (TIME, WIDTH, 4 * WIDTH)

Product = tuple[int, int, int]  # rows, inputs, outputs


def block_products(length: int, width: int, branches: int, outputs: int | None) -> list[Product]:
    """Of one FA-Bi-S6 block; without `outputs` the output projection is a mean that costs nothing."""
    rank, both = width // 16, 2 * length
    found = [
        (length, width, 4 * width),
        (branches * both, width, rank),
        (both, width, 2 * STATES),
        (branches * both, rank, width),
    ]
    return [*found, (length, 2 * branches * width, outputs)] if outputs else found


def all_products(channels: int, classes: int) -> list[Product]:
    """Of the folded detector; a convolution of three taps has three times the inputs."""
    found = [(TIME, 3 * channels, WIDTH), (TIME, 3 * WIDTH, WIDTH)]
    for _ in range(PASSES):
        found += block_products(TIME, WIDTH, 3, WIDTH) + block_products(WIDTH, GATE, 3, None)
    for length in LEVELS[:-1]:
        found += block_products(length, WIDTH, 1, WIDTH)
    points = sum(LEVELS)
    return [*found, *[(points, 3 * WIDTH, WIDTH)] * 4, (points, 3 * WIDTH, classes), (points, 3 * WIDTH, 2)]


def gflop(products: list[Product]) -> float:
    return sum(2e-9 * m * k * n for m, k, n in products)


class Clock:
    """Least time of a call, in seconds: of the process on one thread, on the wall on several."""

    def __init__(self, threads: int):
        self.now = time.process_time if threads == 1 else time.perf_counter

    def once(self, call: Callable[[], object]) -> float:
        start = self.now()
        call()
        return self.now() - start

    def least(self, call: Callable[[], object], rounds: int = 7) -> float:
        call()
        return min(self.once(call) for _ in range(rounds))


class Rates:
    """What this machine does: products in GFLOP/s, copies in GB/s, seconds of the scans."""

    def __init__(self, clock: Clock):
        self.clock = clock
        weight = torch.randn(LARGEST[2], LARGEST[1])
        x = torch.randn(LARGEST[:2])
        prepacked = torch.ops.mkldnn._reorder_linear_weight(weight, LARGEST[0])
        half, half_weight = x.bfloat16(), pack(weight[:, None].bfloat16())
        work = gflop([LARGEST])
        self.plain = work / clock.least(lambda: F.linear(x, weight))
        self.onednn = work / clock.least(
            lambda: torch.ops.mkldnn._linear_pointwise(x, prepacked, None, "none", [], "")
        )  # fmt: skip
        packed = pack(weight[:, None])
        self.packed = work / clock.least(lambda: linear(x[None], packed, LARGEST[2]))
        self.bfloat16 = work / clock.least(lambda: linear(half[None], half_weight, LARGEST[2]))
        integers = pack_int8(weight[:, None])
        self.int8 = work / clock.least(lambda: linear(x[None], integers, LARGEST[2]))
        large = torch.randn(8_000_000)
        to = torch.empty_like(large)
        self.copy = 2e-9 * 4 * large.numel() / clock.least(lambda: to.copy_(large))
        self.scans = PASSES * (self._scan(TIME, WIDTH, 3) + self._scan(WIDTH, GATE, 3))
        self.scans += sum(self._scan(length, WIDTH, 1) for length in LEVELS[:-1])

    def _scan(self, length: int, width: int, branches: int) -> float:
        runs = 2 * branches
        u, BC, xz = (torch.randn(s) for s in ((runs, length, width), (2, length, 2 * STATES), (1, length, 4 * width)))
        delta, A = torch.randn(runs, length, width) - 4, -torch.exp(torch.randn(width, STATES))
        skip, bias = torch.randn(width), torch.randn(width) / 10
        return self.clock.least(lambda: rows.scan_rows(u, delta, A, BC, skip, bias, xz))


def predictions(rates: Rates, products: list[Product]) -> dict[str, tuple[float, str]]:
    """Seconds that each step should save over the row before, and what they are."""
    dead = [(PASSES * 4 * TIME, WIDTH, 2 * STATES), (PASSES * 4 * WIDTH, GATE, 2 * STATES)]
    dead.append((PASSES * WIDTH, 6 * GATE, GATE))  # out_proj of the channel gate
    stem, gate, branch = PASSES * TIME * WIDTH, PASSES * WIDTH * GATE, sum(LEVELS[:-1]) * WIDTH
    # Numbers that pass once more through memory: join and flip of x and z, of the outputs; silu and the cut before it.
    flips = (2 * 4 + 2 * 6 + 2 * 6) * (stem + gate) + (2 * 4 + 2 * 2 + 2 * 2) * branch
    # Join of the outputs; norm, mask, gate, scale, residual; norms, masks and ReLU of embedding and heads.
    passes = 6 * (stem + gate) + 5 * stem + (2 + 4) * branch + 6 * TIME * WIDTH + 4 * 3 * sum(LEVELS) * WIDTH
    work = gflop(products)
    large = gflop([(m, k, n) for m, k, n in products if min(k, n) >= WIDTH])  # those that int8 is for
    return {
        "detector": (
            gflop(dead) / rates.plain + 8e-9 * flips / rates.copy,
            f"{gflop(dead):.1f} GFLOP of unused products, {8e-9 * flips:.1f} GB of flips and joins",
        ),
        "folded": (8e-9 * passes / rates.copy, f"{8e-9 * passes:.1f} GB of passes over activations"),
        "packed": (
            work / rates.plain - work / rates.packed,
            f"{work:.1f} GFLOP at {rates.packed:.0f} instead of {rates.plain:.0f} GFLOP/s",
        ),
        "bfloat16": (
            work / rates.packed - work / rates.bfloat16,
            f"{work:.1f} GFLOP at {rates.bfloat16:.0f} instead of {rates.packed:.0f} GFLOP/s",
        ),
        "int8": (
            large / rates.packed - large / rates.int8,
            f"{large:.1f} GFLOP at {rates.int8:.0f} instead of {rates.packed:.0f} GFLOP/s",
        ),
        "half the frames": (0.0, "the time of the valid frames and of the channel gate"),
    }


def variants(folder: Path, with_aoti: bool) -> tuple[dict[str, Callable], torch.nn.Module]:
    torch.manual_seed(0)
    config = load([GIN], ["Dataset.annotation_file = 'a.json'", "Dataset.feature_dir = 'features'"])
    detector = build_detector(config.model).eval()
    manifest = manifests.describe(config, [str(i) for i in range(config.model.cls_head.num_classes)], {})
    script, folded = folder / "detector.ts.pt", fold(detector)
    torchscript.export(folded, script, manifest, config.post, 160)
    found = {
        "published": PublishedOrder(detector),
        "detector": detector,
        "folded": fold(detector, packed=False),
        "packed": folded,
        "torchscript": torch.jit.load(script),
        "bfloat16": fold(detector, torch.bfloat16),
        "int8": fold(detector, torch.int8),
    }
    if with_aoti:
        package = folder / "detector.pt2"
        aoti.export(folded, package, 160)
        loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1)
        found["aoti"] = lambda features, mask: loader.run([features, mask])
    return found, detector


WHAT = {
    "published": "published order, only the scan ours",
    "detector": "training form: no flips, no unused rows",
    "folded": "folded: neighbours in one pass, heads once",
    "packed": "packed products",
    "torchscript": "the same as TorchScript",
    "aoti": "the same as AOTInductor",
    "bfloat16": "bfloat16",
    "int8": "large products in int8",
    "half the frames": "float32, 1152 of 2304 frames",
    "an eighth": "float32, 288 of 2304 frames",
}
BEFORE = {"detector": "published", "folded": "detector", "packed": "folded", "torchscript": "packed", "aoti": "packed",
          "bfloat16": "packed", "int8": "packed", "half the frames": "packed", "an eighth": "packed"}  # fmt: skip


def measure(threads: int, rounds: int, with_aoti: bool) -> dict:
    clock = Clock(threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        models, detector = variants(Path(folder), with_aoti)
        rates = Rates(clock)
        mask = torch.ones(1, TIME, dtype=torch.bool)
        features = torch.randn(1, detector.settings.embedding.input_c, TIME)
        calls = {name: (model, features, mask) for name, model in models.items()}
        for name, frames in (("half the frames", TIME // 2), ("an eighth", TIME // 8)):
            short = mask & (torch.arange(TIME) < frames)
            calls[name] = (models["packed"], features * short[:, None], short)
        outputs = {name: Outputs(*(o.numpy() for o in model(*x))) for name, (model, *x) in calls.items()}
        samples = {name: [] for name in calls}
        for _ in range(rounds):
            for name, (model, *x) in calls.items():
                samples[name].append(clock.once(lambda model=model, x=x: model(*x)))
        truth = {name: Outputs(*(o.numpy() for o in detector(*x))) for name, (_, *x) in calls.items()}
    least = {name: min(values) for name, values in samples.items()}
    settings = detector.settings
    products = all_products(settings.embedding.input_c, settings.cls_head.num_classes)
    floor = gflop(products) / rates.onednn + rates.scans
    expected = predictions(rates, products)
    table = []
    for name in (name for name in WHAT if name in least):
        parity = compare(outputs[name], truth[name], detector.level_lengths(TIME))
        seconds, why = expected.get(name, (0.0, ""))
        table.append(
            {
                "step": name,
                "what": WHAT[name],
                "ms": least[name] * 1e3,
                "over_floor": least[name] / floor,
                "saved_ms": (least[BEFORE[name]] - least[name]) * 1e3 if name in BEFORE else None,
                "predicted_ms": seconds * 1e3 if why and name != "half the frames" else None,
                "because": why,
                "relative_l2": parity.relative_l2,
                "ok": parity.ok or name in ("bfloat16", "int8"),
            }
        )
    machine = {name: getattr(rates, name) for name in ("plain", "onednn", "packed", "bfloat16", "int8", "copy")}
    return {
        "environment": environment.describe(threads=threads),
        "clock": "CPU time" if threads == 1 else "wall time",
        "rounds": rounds,
        "floor_ms": floor * 1e3,
        "gflop": gflop(products),
        "scans_ms": rates.scans * 1e3,
        "rates": machine,
        "rows": table,
    }


def print_table(result: dict) -> None:
    print(environment.summary(result["environment"]))
    rates = result["rates"]
    print(
        f"floor {result['floor_ms']:.0f} ms: {result['gflop']:.1f} GFLOP at {rates['onednn']:.0f} GFLOP/s (oneDNN, "
        f"packed), scans {result['scans_ms']:.0f} ms; F.linear {rates['plain']:.0f}, ours {rates['packed']:.0f}, in "
        f"bfloat16 {rates['bfloat16']:.0f}, in int8 {rates['int8']:.0f} GFLOP/s; copies {rates['copy']:.1f} GB/s; "
        f"{result['clock']}"
    )
    print(f"{'step':45}{'ms':>8}{'of floor':>10}{'saved':>8}{'predicted':>11}  because")
    for row in result["rows"]:
        cells = ["" if row[key] is None else f"{row[key]:.0f}" for key in ("saved_ms", "predicted_ms")]
        line = (
            f"{row['what']:45}{row['ms']:>8.0f}{row['over_floor']:>10.2f}{cells[0]:>8}{cells[1]:>11}  {row['because']}"
        )
        print(line if row["ok"] else f"{row['what']:45} WRONG RESULTS: relative L2 {row['relative_l2']:.1e}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_detector",
        description="Measure the detector on a CPU, step by step.",
        epilog="example: python -m benchmarks.cpu_detector --output benchmarks/results/cpu_detector_1.json",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--aoti", action="store_true", help="with AOTInductor, which compiles for a minute")
    parser.add_argument("--output", type=Path, help="also write the figures and the machine to this JSON file")
    args = parser.parse_args(argv)
    library.require()
    torch.set_num_threads(args.threads)
    result = measure(args.threads, args.rounds, args.aoti)
    print_table(result)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, result, indent=1)
    if not all(row["ok"] for row in result["rows"]):
        raise RunError("wrong results (see the table): rebuild the library with python -m ops.build --force")


if __name__ == "__main__":
    if not ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.cpu_detector", *sys.argv[1:]],
                  os.environ | ALLOCATOR)  # fmt: skip
    sys.exit(cli.run(main))
