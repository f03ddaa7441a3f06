"""What the machine does at best, measured in the same run: a product of large matrices, and a copy."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rdfa.bench.backends.torch_backend import DTYPES
from rdfa.bench.timing import Clock
from rdfa.runtime.torch_threads import pinned

SIZE = {"cpu": 1024, "cuda": 8192}
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}
SECONDS, LEAST_CALLS = 0.3, 3


def measure(
    device: str, dtypes: Sequence[str], threads: int | None, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """{"matmul_gflops": {dtype: rate}, "copy_gb_per_s": bytes read and written}: the best of several calls each."""
    n, rates = SIZE[device], {}
    with pinned(threads), torch.inference_mode():
        for dtype in dtypes:
            rates[dtype] = round(2e-9 * n**3 / _best_s(_product(n, dtype, device), device, clock), 1)
        source = torch.ones(COPIED_BYTES[device], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy_s = _best_s(lambda: target.copy_(source), device, clock)
    return {"matmul_gflops": rates, "copy_gb_per_s": round(2e-9 * COPIED_BYTES[device] / copy_s, 1)}


def _product(n: int, dtype: str, device: str) -> Callable[[], object]:
    if dtype == "int8":
        a, b = (torch.randint(-127, 128, (n, n), device=device, dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(a, b)  # no public operator of torch multiplies these into int32
    a, b = (torch.randn(n, n, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    return lambda: a @ b


def _best_s(call: Callable[[], object], device: str, clock: Clock) -> float:
    times: list[float] = []
    call()
    while sum(times) < SECONDS or len(times) < LEAST_CALLS:
        start = clock()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times)
