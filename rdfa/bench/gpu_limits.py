"""What a GPU allows at best: the floor that a kernel's time is compared with.

A scan needs one exponential per state and step; the unit that computes them takes 16 per multiprocessor and clock, and
no memory of a current GPU is slow enough to hide it at N = 16. The other bound is the memory: what has to be read and
written, at the speed that a plain copy reaches. The floor is the larger.
"""

import time
from dataclasses import dataclass

import torch

from rdfa.bench import environment, gpu_timing, timing
from rdfa.errors import RunError

# Of a multiprocessor of compute capability 7.0 to 10.0, and 12.
EXPONENTIALS_PER_CLOCK = 16
COPIED_BYTES = 2**30
COPY_REPLAYS = 5


@dataclass(frozen=True)
class Limits:
    """Of one device. `copy_bytes_per_s` counts bytes read and bytes written."""

    multiprocessors: int
    clock_hz: float
    l2_bytes: int
    copy_bytes_per_s: float

    def floor_s(self, exponentials: int, memory_bytes: int) -> tuple[float, str]:
        """Seconds that no kernel can undercut, and by what: 'exponentials' or 'memory'."""
        by_exponentials = exponentials / (self.multiprocessors * EXPONENTIALS_PER_CLOCK * self.clock_hz)
        by_memory = memory_bytes / self.copy_bytes_per_s
        if by_exponentials > by_memory:
            return by_exponentials, "exponentials"
        return by_memory, "memory"


def probe(clock: timing.Clock = time.perf_counter) -> Limits:
    """Of the current CUDA device: its properties, and a copy of a gigabyte."""
    details = environment.gpu_details()
    if details["sm_clock_max_mhz"] is None:
        raise RunError("the GPU's highest clock is unknown, and the floor with it: nvidia-smi does not answer")
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    pair = source, torch.empty_like(source)
    copy = gpu_timing.replayed(lambda pair: pair[1].copy_(pair[0]), [pair], clock)
    copy_s = min(gpu_timing.seconds(copy, clock) for _ in range(COPY_REPLAYS)) / copy.calls
    return Limits(
        multiprocessors=details["multiprocessors"],
        clock_hz=details["sm_clock_max_mhz"] * 1e6,
        l2_bytes=torch.cuda.get_device_properties().L2_cache_size,
        copy_bytes_per_s=2 * COPIED_BYTES / copy_s,
    )
