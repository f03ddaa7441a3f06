"""What the GPU's driver counts: memory, energy, clocks. NVML is the package nvidia-ml-py, extra 'gpu'."""

import importlib.util
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Nvml:
    """One device."""

    library: Any
    handle: Any

    @staticmethod
    def open(index: int = 0) -> "Nvml | None":
        """None where there is no NVML or no such device; `index` is the driver's, not CUDA_VISIBLE_DEVICES'."""
        if importlib.util.find_spec("pynvml") is None:
            return None
        import pynvml

        try:
            pynvml.nvmlInit()
            return Nvml(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError:
            return None

    def used_mb(self) -> float:
        """Memory in use on the device, by whatever program."""
        return self.library.nvmlDeviceGetMemoryInfo(self.handle).used / 2**20

    def energy_j(self) -> float | None:
        """Since the driver was loaded; None where the device does not count it. It moves on ten times a second."""
        try:
            return self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3
        except self.library.NVMLError:
            return None

    def clock_mhz(self) -> int | None:
        """Of the multiprocessors, now."""
        try:
            return self.library.nvmlDeviceGetClockInfo(self.handle, self.library.NVML_CLOCK_SM)
        except self.library.NVMLError:
            return None
