"""Detectors of torch on a GPU: each way to run them gives the outputs of the plain operators."""

import numpy as np
import pytest
import torch

from rdfa.bench import backends, detector
from rdfa.bench.candidates import Sweep, open_all
from rdfa.bench.cold_start import Shape
from rdfa.bench.reference import PlainDetector
from rdfa.bench.witness import on_device
from rdfa.inference.settings import PostProcessingSettings
from tests.deploy.artifacts import tiny_artifact

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["eager", "eager_unfolded", "cuda_graph", "torch_compile", "published"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_outputs_at_changing_shapes(name, dtype, tolerance):
    reason = backends.availability(tiny_artifact(), "cuda", dtype)[name]
    if reason:
        pytest.skip(reason)
    backend = backends.load(tiny_artifact(), name, device="cuda", dtype=dtype)
    plain = backends.load(tiny_artifact(), "eager_plain", device="cuda", dtype="float32")
    for batch, time in ((2, 38), (1, 64), (2, 38)):
        features, mask = RNG.standard_normal((batch, 6, time), np.float32), np.ones((batch, time), bool)
        for value, wanted in zip(backend.run(features, mask)[:2], plain.run(features, mask)[:2]):
            assert np.abs(value - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())
    assert backend.device == "cuda"


@pytest.mark.parametrize("resident", [False, True])
def test_rows_of_a_sweep(resident):
    shapes = (Shape(1, 64), Shape(2, 38))
    sweep = Sweep(tiny_artifact(), ("eager", "cuda_graph"), "cuda", shapes, 6, 0.05, 1, ("bfloat16",), resident)
    oracle = PlainDetector(tiny_artifact(), 1, PostProcessingSettings(), "cuda")
    opened = open_all(sweep, "bfloat16", backends, lambda *args: {}, lambda line: None)
    rows = detector.run(sweep, opened, oracle, on_device=on_device("cuda"))
    assert [(row.backend, row.verdict) for row in rows] == [
        (name, "valid") for _ in shapes for name in ("eager_plain", "cuda_graph", "eager")
    ]
    assert {row.copies for row in rows} == {"not counted" if resident else "counted"}
