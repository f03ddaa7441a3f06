"""`nms` and `decode_nms` as torch operators: opcheck, trace, fake tensors, no library, and wrong inputs."""

import io

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ops import decode_nms, library, nms
from tests.ops.nms.test_native import assert_identical, detector_outputs

CANDIDATES = (
    torch.tensor([[0.0, 4.0], [1.0, 4.0], [6.0, 9.0]]),
    torch.tensor([0.9, 0.8, 0.7]),
    torch.tensor([2, 2, 0]),
)
SETTINGS = (1, True, 0.1, 0.001, 200, 0.5, 0.7)
DECODING = (0.001, 2000, 0.05)


def test_opcheck():
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.rdfa.nms, (*CANDIDATES, *SETTINGS), test_utils=tests)
    arguments = (*detector_outputs(2, finest=32), *DECODING, *SETTINGS)
    torch.library.opcheck(torch.ops.rdfa.decode_nms, arguments, test_utils=tests)


def test_fake_result_has_an_unknown_length():
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        segments, scores, labels = torch.ops.rdfa.nms(*map(mode.from_tensor, CANDIDATES), *SETTINGS)
    assert not isinstance(segments.shape[0], int)
    assert segments.shape[1] == 2 and scores.dim() == 1 and labels.dtype == torch.int64


def test_traced_module_runs_on_other_sizes():
    class Decoder(torch.nn.Module):
        def forward(self, logits, offsets, mask, points):
            return torch.ops.rdfa.decode_nms(logits, offsets, mask, points, *DECODING, *SETTINGS)

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(Decoder(), detector_outputs(2, finest=32)), buffer)
    buffer.seek(0)
    other = detector_outputs(3, finest=96, seed=1)
    assert_identical(torch.jit.load(buffer)(*other), decode_nms(*other))


def test_the_gaussian_by_hand():
    segments, scores, labels = nms(*CANDIDATES)
    assert segments.tolist() == [[0, 4], [6, 9], [1, 4]] and labels.tolist() == [2, 0, 2]
    iou = 3 / (4 + 3 - 3)
    torch.testing.assert_close(scores[2], 0.8 * torch.exp(torch.tensor(-(iou**2) / 0.5)), rtol=1e-5, atol=0)


def test_without_the_library_the_reference_runs(monkeypatch):
    outputs = detector_outputs(2, finest=32)
    expected = decode_nms(*outputs), nms(*CANDIDATES)
    monkeypatch.setattr(library, "_problem", "librdfa_ops.so is not built")
    monkeypatch.setattr(library, "_warned", False)
    with pytest.warns(UserWarning, match=r"python -m ops\.build"):
        result = decode_nms(*outputs), nms(*CANDIDATES)
    assert_identical(result[0], expected[0])
    assert_identical(result[1], expected[1])


def test_no_points_no_candidates():
    empty = (torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool), torch.zeros(0, 4))
    for method in ("soft", "hard", "none"):
        shapes = [tuple(t.shape) for t in decode_nms(*empty, method=method)]
        assert shapes == [(0, 2), (0,), (0,)]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"method": "softer"}, ValueError, "method = 'softer' is unknown: use 'soft', 'hard' or 'none'"),
        ({"max_seg_num": 0}, ValueError, "max_seg_num = 0: expected at least 1"),
        ({"sigma": 0.0}, ValueError, "sigma = 0.0: expected more than 0"),
        ({"segments": torch.zeros(2, 2)}, ValueError, r"segments has shape \[2, 2\]: expected \[N, 2\] = \[3, 2\]"),
        ({"labels": torch.zeros(3)}, TypeError, "labels is torch.float32: expected integers"),
        ({"scores": torch.zeros(3, 1)}, ValueError, r"scores has shape \[3, 1\]: expected \[N\]"),
    ],
    ids=str,
)
def test_wrong_candidates_are_refused_in_one_line(change, error, message):
    with pytest.raises(error, match=message):
        nms(**(dict(zip(("segments", "scores", "labels"), CANDIDATES)) | change))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"cls_logits": torch.zeros(7)}, ValueError, r"cls_logits has shape \[7\]: expected \[P, C\]"),
        ({"offsets": torch.zeros(5, 2)}, ValueError, r"offsets has shape \[5, 2\]"),
        ({"points": torch.zeros(48, 3)}, ValueError, r"points has shape \[48, 3\]: expected \[P, 4\] = \[48, 4\]"),
        ({"point_mask": torch.ones(48)}, TypeError, "point_mask is torch.float32: expected torch.bool"),
        ({"pre_nms_topk": 0}, ValueError, "pre_nms_topk = 0: expected at least 1"),
    ],
    ids=str,
)
def test_wrong_outputs_are_refused_in_one_line(change, error, message):
    outputs = dict(zip(("cls_logits", "offsets", "point_mask", "points"), detector_outputs(2, finest=32, levels=2)))
    with pytest.raises(error, match=message):
        decode_nms(**(outputs | change))


def test_the_operators_check_what_reaches_them():
    with pytest.raises(RuntimeError, match=r"method = 3: expected 0 \(none\), 1 \(soft\) or 2 \(hard\)"):
        torch.ops.rdfa.nms(*CANDIDATES, 3, *SETTINGS[1:])
    with pytest.raises(RuntimeError, match=r"labels has dtype Int, expected Long"):
        torch.ops.rdfa.nms(*CANDIDATES[:2], CANDIDATES[2].int(), *SETTINGS)
    outputs = list(detector_outputs(2, finest=32, levels=2))
    outputs[1] = outputs[1][:5]
    with pytest.raises(RuntimeError, match=r"offsets has shape \[5, 2\], expected \[48, 2\]"):
        torch.ops.rdfa.decode_nms(*outputs, *DECODING, *SETTINGS)
