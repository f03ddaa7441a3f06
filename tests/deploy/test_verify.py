"""The check before a file is kept: its sizes, its truth, and that it sees small errors."""

import dataclasses

import numpy as np
import pytest
import torch

from rdfa import runtime
from rdfa.data.settings import LoaderSettings
from rdfa.deploy import verify
from rdfa.inference.decode import Detections
from rdfa.modeling.detector import build_generator
from tests.deploy import artifacts
from tests.golden import rebuild


@pytest.fixture(scope="module")
def config():
    return artifacts.tiny_config()


@pytest.fixture(scope="module")
def detector(config):
    return artifacts.tiny_detector(config)


@pytest.fixture(scope="module")
def case(detector, config):
    return verify.make_case(detector, config, 3, 98)


def with_limit(config, factor, divisor=1):
    generator = dataclasses.replace(config.model.generator, max_buffer_len_factor=factor)
    model = dataclasses.replace(config.model, generator=generator)
    return dataclasses.replace(config, model=model, loader=LoaderSettings(max_div_factor=divisor))


def test_sizes_are_never_traced_and_fit_the_detector(config):
    published = artifacts.golden_config("small_a")
    assert verify.sizes(published) == [(2, 4608), (1, 2336), (3, 1184)]
    assert verify.traced_time(published) == 160
    for factor in (1.0, 1.5, 6.0, 100.0):
        limited = with_limit(config, factor)
        times = [time for _, time in verify.sizes(limited)]
        for time in (*times, verify.traced_time(limited)):
            build_generator(limited.model).level_lengths(time)
        assert verify.traced_time(limited) not in times
        assert len(set(times)) == 3


def test_sizes_are_padded_lengths(config):
    longest = config.dataset.max_seq_len
    assert all(time % longest == 0 for _, time in verify.sizes(with_limit(config, 6.0, divisor=longest)))


def test_truth_is_the_golden_output_in_float64():
    """What checks compare with, the untouched detector in float64, given a golden input."""
    meta, case = rebuild.case_meta("small_d"), rebuild.load_npz("model_small_d")
    features, mask = map(torch.from_numpy, rebuild.case_input(meta))
    exact = artifacts.golden_detector("small_d").double()
    with torch.no_grad():
        logits, _, _ = exact(features.double(), mask)
    finest = case["cls_logits64_0"]
    np.testing.assert_allclose(logits[:, : finest.shape[1]].numpy(), finest, atol=1e-8)


def test_case_is_ragged_exact_and_repeatable(case, detector, config):
    valid = case.mask_BT.sum(1)
    assert len(set(valid)) == 3 and valid.max() < 98
    assert not case.features_BCT.transpose(0, 2, 1)[~case.mask_BT].any()
    assert case.outputs.cls_logits.dtype == np.float64
    assert sum(case.level_lengths) == case.outputs.cls_logits.shape[1]
    assert all(len(detections) for detections in case.detections)
    again = verify.make_case(detector, config, 3, 98)
    np.testing.assert_array_equal(again.outputs.offsets, case.outputs.offsets)
    assert next(detector.parameters()).dtype == torch.float32


def test_right_file_passes(case, config):
    for backend in ("eager", "torchscript", "onnxruntime"):
        row = verify.check(runtime.load(artifacts.tiny_artifact(), backend), case, config)
        assert row.ok, backend
        assert row.parity.max_abs < 1e-5
        assert row.detections == 1.0


@pytest.mark.parametrize("name", ["backbone.stem_module.blocks.0.c_mamba.D", "reg_head.scale.1.scale"])
def test_one_parameter_off_by_a_percent_fails(case, config, detector, name):
    """The gate's D is among the parameters that move the outputs least."""
    wrong = artifacts.tiny_detector(config)
    with torch.no_grad():
        wrong.get_parameter(name).mul_(1.01)

    def call(features, mask):
        with torch.no_grad():
            return [value.numpy() for value in wrong(torch.from_numpy(features), torch.from_numpy(mask))]

    manifest = runtime.load(artifacts.tiny_artifact(), "eager").manifest
    row = verify.check(runtime.Session(manifest, "eager", "cpu", call), case, config)
    assert not row.ok
    assert row.as_dict()["ok"] is False


def test_half_precision_is_measured_by_that_of_pytorch(case, config, detector):
    own = verify.own_error(detector, [case], "float16")
    assert 1e-5 < own.relative_l2 < 1e-2 and not own.ok

    def session(error):
        exact = case.outputs
        outputs = [exact.cls_logits + error * np.abs(exact.cls_logits), exact.offsets, exact.point_mask]
        return runtime.Session(manifest, "onnxruntime", "cpu", lambda *inputs: outputs)

    manifest = runtime.load(artifacts.tiny_artifact(), "eager").manifest
    assert verify.check(session(0.5 * own.relative_l2), case, config, own).ok
    assert not verify.check(session(3 * own.relative_l2), case, config, own).ok
    overflown = own._replace(max_abs=float("inf"), relative_l2=float("inf"))
    assert not verify.check(session(float("nan")), case, config, overflown).ok


def detections(segments, scores, labels):
    return Detections(np.array(segments, np.float32).reshape(-1, 2), np.array(scores), np.array(labels, np.int64))


def test_agreement_of_detections():
    some = detections([[1, 2], [1, 2], [5, 9]], [0.9, 0.5, 0.4], [0, 1, 0])
    assert verify.agreeing(some, some) == 1.0
    none = detections([], [], [])
    assert verify.agreeing(none, none) == 1.0
    assert verify.agreeing(some, none) == verify.agreeing(none, some) == 0.0
    moved = detections([[1, 2.1], [1, 2], [5, 9]], [0.9, 0.5, 0.4], [0, 1, 0])
    assert verify.agreeing(moved, some) == pytest.approx(2 / 3)
    other_class = detections([[1, 2], [1, 2], [5, 9]], [0.9, 0.5, 0.4], [0, 2, 0])
    assert verify.agreeing(other_class, some) == pytest.approx(2 / 3)
    # One detection cannot stand for two.
    twice = detections([[1, 2], [1, 2], [1, 2], [5, 9]], [0.9, 0.9, 0.5, 0.4], [0, 0, 1, 0])
    assert verify.agreeing(twice, some) == pytest.approx(3 / 4)
