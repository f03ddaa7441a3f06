"""Operations, bytes, sizes and energy of rows."""

from types import SimpleNamespace

import pytest

from ops import library
from rdfa.bench import resources
from rdfa.bench.candidates import Candidate, Sweep
from rdfa.bench.cold_start import Shape
from rdfa.bench.nvml import Nvml
from rdfa.bench.results import Row
from rdfa.runtime import manifest as manifests
from tests.deploy.artifacts import tiny_artifact

PEAKS = {"matmul_gflops": {"float32": 10.0, "bfloat16": 40.0, "int8": 80.0}, "copy_gb_per_s": 1.0}


def row(backend="eager", **changes):
    values = {"dtype": "float32", "scenario": "sweep", "batch": 1, "time": 64, "verdict": "valid"} | changes
    return Row(backend, "cpu", latency_ms={"p50": 2.0}, **values)


@pytest.mark.skipif(not library.loaded(), reason=f"operators are counted in the native library: {library.REMEDY}")
def test_columns_of_rows():
    sweep = Sweep(tiny_artifact(), (), "cpu", (Shape(1, 64), Shape(2, 64)), 6, 1.0, 1, ("float32", "bfloat16", "int8"))
    single, double, half, integer = row(), row(batch=2), row(dtype="bfloat16"), row(dtype="int8")
    exported, served, failed = row("torchscript"), row(scenario="Server"), row(verdict="invalid: x")
    resources.fill([single, double, half, integer, exported, served, failed], sweep, [], PEAKS)
    assert double.gflops == pytest.approx(2 * single.gflops, rel=0.01) and half.gflops == single.gflops
    # Operations in 2 ms, of 10 GFLOP/s.
    assert single.percent_of_peak == pytest.approx(100 * single.gflops / 2e-3 / 10, abs=0.01)
    assert half.percent_of_peak == pytest.approx(single.percent_of_peak / 4, abs=0.01)
    assert integer.percent_of_peak == pytest.approx(single.percent_of_peak / 8, abs=0.01)
    inputs, outputs = 64 * (4 * 6 + 1), 4 * (64 + 32) * (3 + 2)
    sizes = {entry["format"]: entry["size"] / 2**20 for entry in manifests.read(tiny_artifact())["files"].values()}
    weights = sizes["safetensors"] * 2**20
    assert single.compulsory_mb * 2**20 == pytest.approx(weights + inputs + outputs, rel=0.3)  # it has a header
    # A byte of a weight instead of four; inputs and outputs are float32 in both.
    assert single.compulsory_mb - integer.compulsory_mb == pytest.approx(0.75 * weights / 2**20, rel=0.3)
    assert double.compulsory_mb - single.compulsory_mb == pytest.approx((inputs + outputs) / 2**20, abs=2e-3)
    assert (single.model_mb, exported.model_mb) == pytest.approx((sizes["safetensors"], sizes["torchscript"]), abs=1e-3)
    assert served.gflops is failed.gflops is None and served.model_mb == single.model_mb


class Driver:
    """As pynvml, of a device that takes 100 W and counts in millijoules."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM = 1

    def __init__(self, counts=True):
        self.counts, self.joules = counts, 0.0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.counts:
            raise self.NVMLError("not supported")
        return 1e3 * self.joules

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return 1980

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=3 * 2**20)


def test_energy_is_per_video(monkeypatch):
    monkeypatch.setattr(resources, "ENERGY_S", 0.02)
    driver = Driver()

    class Backend:
        def run(self, features, mask):
            driver.joules += 5.0

    sweep = Sweep(tiny_artifact(), (), "cuda", (Shape(2, 64),), 6, 1.0, 1)
    measured = row(batch=2)
    nvml = Nvml(driver, None)
    resources._energy([measured], sweep, [Candidate("eager", "float32", Backend())], nvml)
    assert (measured.energy_j_per_video, measured.sm_clock_mhz) == (2.5, 1980)
    assert nvml.used_mb() == 3.0


def test_a_device_that_does_not_count_energy():
    measured = row()
    sweep = Sweep(tiny_artifact(), (), "cuda", (Shape(1, 64),), 6, 1.0, 1)
    backend = SimpleNamespace(run=lambda *inputs: None)
    resources._energy([measured], sweep, [Candidate("eager", "float32", backend)], Nvml(Driver(counts=False), None))
    assert measured.energy_j_per_video is None
