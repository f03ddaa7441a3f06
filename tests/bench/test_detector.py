"""The sweep with backends of known speed and known faults."""

from pathlib import Path

import numpy as np
import pytest

from rdfa.bench import detector
from rdfa.bench.candidates import Sweep, open_all
from rdfa.bench.cold_start import Shape
from rdfa.bench.results import document
from rdfa.errors import RunError, UsageError
from tests.bench import fakes
from tests.bench.fakes import FakeClock, FakeOracle, FakeRuntime

SHAPES = (Shape(1, 32), Shape(2, 64))


def sweep(
    runtime,
    *,
    backends=(),
    device="cpu",
    shapes=SHAPES,
    plain_seconds=1.0,
    cold=fakes.cold,
    plain=True,
    on_device=lambda call: True,
    dtypes=("float32",),
):
    """The rows, by (backend, batch); every result is checked against the schema on the way."""
    if plain:
        runtime.seconds = {"eager_plain": plain_seconds} | runtime.seconds
    request = Sweep(Path("artifact"), backends, device, shapes, fakes.CHANNELS, seconds=2.0, threads=2, dtypes=dtypes)
    oracle = FakeOracle(runtime.clock, plain_seconds)
    opened = [c for dtype in dtypes for c in open_all(request, dtype, runtime, cold, lambda line: None)]
    rows = detector.run(request, opened, oracle, on_device=on_device, clock=runtime.clock)
    document(fakes.MACHINE, rows)
    return {(row.backend, row.batch): row for row in rows}


def test_speed_parity_and_resources_of_right_backends():
    runtime = FakeRuntime(FakeClock(), {"eager": 0.02, "torchscript": 0.01})
    rows = sweep(runtime)
    assert list(rows) == [(n, b) for b in (1, 2) for n in ("eager_plain", "eager", "torchscript")]
    row = rows["torchscript", 2]
    assert row.verdict == "valid"
    assert row.latency_ms == pytest.approx(
        dict.fromkeys(("min", "mean", "p50", "p90", "p95", "p97", "p99", "p99.9"), 10.0)
    )
    assert row.throughput_videos_per_s == pytest.approx(200.0)
    assert (row.reference, row.speedup_vs_reference) == ("eager_plain", pytest.approx(100.0))
    assert row.parity == {"max_abs": 0.0, "relative_l2": 0.0, "ok": True}
    assert row.detections == {
        "count": 2, "reference_count": 2, "matched": 2, "max_abs_segment_s": 0.0, "max_abs_score": 0.0,
    }  # fmt: skip
    assert (row.load_s, row.first_inference_ms, row.peak_memory_mb) == (0.5, 12.0, 102.0)
    assert row.aa_spread == pytest.approx(0.0, abs=1e-9)
    assert [rows[n, 1].equal_to_fastest for n in ("eager_plain", "eager", "torchscript")] == [False, False, True]


def test_identical_backends_are_equal():
    rows = sweep(FakeRuntime(FakeClock(), {"eager": 0.01, "torchscript": 0.01, "onnxruntime": 0.011}))
    equal = {name for (name, batch), row in rows.items() if row.equal_to_fastest}
    assert equal == {"eager", "torchscript"}


def assert_no_speed(row):
    assert (row.latency_ms, row.throughput_videos_per_s, row.speedup_vs_reference, row.samples) == (None, None, None, 0)


def test_a_slightly_wrong_result_is_refused():
    def wrong(logits, offsets, mask):
        offsets = offsets.copy()
        offsets[0, 5, 1] += 3e-3
        return logits, offsets, mask

    rows = sweep(FakeRuntime(FakeClock(), {"eager": 0.02, "onnxruntime": 0.001}, change={"onnxruntime": wrong}))
    row = rows["onnxruntime", 1]
    assert row.verdict.startswith("invalid: offsets is off by 0.003")
    assert row.parity["ok"] is False
    assert_no_speed(row)
    assert rows["eager", 1].equal_to_fastest


def test_a_backend_elsewhere_than_asked_is_refused():
    runtime = FakeRuntime(FakeClock(), {"eager": 0.01, "onnxruntime": 0.01}, devices={"onnxruntime": "cpu"})
    rows = sweep(runtime, device="cuda")
    assert rows["eager", 1].copies == "counted"
    assert rows["onnxruntime", 1].verdict == "invalid: runs on cpu, not on cuda as asked"
    assert_no_speed(rows["onnxruntime", 1])
    assert (rows["eager", 1].device, rows["eager", 1].verdict) == ("cuda", "valid")


def test_a_backend_that_silently_runs_on_the_cpu_is_refused():
    """It says 'cuda', and its answers are right; but the device saw nothing of it."""
    runtime = FakeRuntime(FakeClock(), {"eager": 0.02, "onnxruntime": 0.01})
    busy = []

    def on_device(call):
        before = runtime.clock()
        call()
        took = runtime.clock() - before
        busy.append(took)
        return took > 0.015  # as if the faster one left the device idle

    rows = sweep(runtime, device="cuda", on_device=on_device, shapes=SHAPES[:1])
    assert busy == pytest.approx([1.0, 0.02, 0.01])
    row = rows["onnxruntime", 1]
    assert row.verdict == "invalid: nothing ran on cuda during a call, whatever the backend says"
    assert_no_speed(row)
    assert rows["eager", 1].valid


def test_half_precision_may_err_as_much_as_the_plain_operators_do():
    def off(by):
        return lambda logits, offsets, mask: (logits + by, offsets, mask)

    change = {"torchscript": off(2e-2), "onnxruntime": off(4e-2)}
    rows = sweep(
        FakeRuntime(FakeClock(), dict.fromkeys(("eager", "torchscript", "onnxruntime"), 0.01), change=change),
        dtypes=("bfloat16",),
    )
    assert rows["torchscript", 1].valid and rows["torchscript", 1].dtype == "bfloat16"
    assert rows["onnxruntime", 1].verdict.startswith("invalid: off by 0.04 at most, the plain operators in this dtype")
    assert_no_speed(rows["onnxruntime", 1])


def test_a_device_that_a_backend_does_not_serve_is_skipped():
    runtime = FakeRuntime(FakeClock(), {"eager": 0.01, "torchscript": 0.01}, devices={"torchscript": "refuses"})
    assert "skipped: backend torchscript has no device" in sweep(runtime, device="cuda")["torchscript", 1].verdict


def test_a_missing_backend_is_skipped_with_what_brings_it():
    reason = "onnxruntime is not installed: pip install 'rdfa-s6[onnx]'"
    rows = sweep(FakeRuntime(FakeClock(), {"eager": 0.01}, missing={"onnxruntime": reason}))
    assert rows["onnxruntime", 1].verdict == f"skipped: {reason}"
    assert_no_speed(rows["onnxruntime", 1])


def test_no_backend_at_all():
    with pytest.raises(RunError, match="no backend can run this artifact on cpu in float32 here: eager: torch is"):
        sweep(FakeRuntime(FakeClock(), {}, missing={"eager": "torch is missing"}))


def test_an_unknown_backend_names_the_valid_ones():
    with pytest.raises(UsageError, match="'onnx' is unknown; valid: all, eager_plain, eager, onnxruntime"):
        sweep(FakeRuntime(FakeClock(), {"eager": 1.0, "onnxruntime": 1.0}), backends=("onnx",))


def test_chosen_backends_are_measured_beside_the_reference():
    runtime = FakeRuntime(FakeClock(), {"eager": 0.01, "torchscript": 0.01})
    rows = sweep(runtime, backends=("torchscript",), shapes=SHAPES[:1])
    assert [name for name, _ in rows] == ["eager_plain", "torchscript"]


def test_a_backend_that_raises_is_refused():
    def fail(*outputs):
        raise ValueError("no kernel\nfor this size")

    rows = sweep(FakeRuntime(FakeClock(), {"eager": 0.01, "torchscript": 0.01}, change={"torchscript": fail}))
    assert rows["torchscript", 1].verdict == "invalid: raised ValueError: no kernel for this size"
    assert rows["eager", 1].valid


def test_a_backend_that_does_not_start_in_a_new_process_is_refused():
    def cold(artifact, backend, *rest):
        if backend == "torchscript":
            raise RunError("torchscript does not run in a new process: killed")
        return fakes.cold(artifact, backend, *rest)

    rows = sweep(FakeRuntime(FakeClock(), {"eager": 0.01, "torchscript": 0.01}), cold=cold)
    assert rows["torchscript", 1].verdict == "invalid: torchscript does not run in a new process: killed"


def test_a_plain_run_of_over_a_minute_is_skipped_and_eager_is_the_reference():
    rows = sweep(FakeRuntime(FakeClock(), {"eager": 0.02, "torchscript": 0.01}), plain_seconds=61.0)
    assert rows["eager_plain", 1].verdict == "skipped: one call would take about 61 s, more than 60 s"
    assert rows["torchscript", 1].reference == "eager"
    assert rows["torchscript", 1].speedup_vs_reference == pytest.approx(2.0)


def test_without_the_native_library_eager_is_its_own_reference():
    rows = sweep(FakeRuntime(FakeClock(), {"eager": 0.5}), plain=False, shapes=SHAPES[:1])
    assert [(name, row.reference, row.speedup_vs_reference) for (name, _), row in rows.items()] == [
        ("eager", "eager", pytest.approx(1.0))
    ]


def test_shapes_default_to_the_clip_length_and_a_quarter_of_it():
    assert detector.make_shapes(fakes.FEATURES, (), ()) == (Shape(1, 64), Shape(2, 64), Shape(1, 256), Shape(2, 256))
    short = fakes.FEATURES | {"max_seq_len": 64}
    assert detector.make_shapes(short, (3,), ()) == (Shape(3, 32), Shape(3, 64))
    assert detector.make_shapes(fakes.FEATURES, (4,), (96,)) == (Shape(4, 96),)


@pytest.mark.parametrize("time", [100, 544, 0])
def test_a_time_that_the_artifact_does_not_take_is_refused(time):
    with pytest.raises(UsageError, match=f"--time {time}: this artifact takes a multiple of 32 up to 512"):
        detector.make_shapes(fakes.FEATURES, (), (time,))


def test_inputs_differ_and_the_last_of_several_videos_is_padded_with_zeros():
    inputs = detector.make_inputs(Shape(2, 64), 4)
    assert not np.array_equal(inputs[0][0], inputs[1][0])
    for features, mask in inputs:
        assert (features.dtype, features.shape, mask.sum(1).tolist()) == (np.float32, (2, 4, 64), [64, 48])
        assert not features[1, :, 48:].any()
    assert detector.make_inputs(Shape(1, 64), 4)[0][1].all()
