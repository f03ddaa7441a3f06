"""Proof that the files of an artifact compute what the detector computes, at sizes that were never traced.

The truth is the detector as it was trained, without any of the exporters' replacements, in float64 on the plain
reference operators. The files are loaded from the disk through `rdfa.runtime`, as a user loads them.

Shape suffixes: B batch, C channels, T time, P points.
"""

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from rdfa.config import Config
from rdfa.inference.decode import Detections, VideoTiming, detect
from rdfa.modeling.detector import Detector, build_generator
from rdfa.modeling.folded import fold
from rdfa.runtime.parity import Parity, compare
from rdfa.runtime.session import Outputs, Session

# Twice the training length of the published detector; one step more than it; a short one. Only the first is a multiple
# of 576, the length to which the channel gate pools.
SIZES = ((2, 4608), (1, 2336), (3, 1184))
FPS = 25.0
# Two detections are the same within this many seconds, and this score.
SECONDS, SCORE = 1e-2, 1e-3
# Of a file in less than float32, the error may be so many times that of PyTorch in it. How many detections are equal is
# not asked of it: rounding moves candidates past each other, in PyTorch as in the file.
MARGIN = 2.0
# Candidates whose scores agree to the last digit may change places in suppression, and change their neighbours' scores.
AGREEMENT = 0.99


class Case(NamedTuple):
    """An input and the true outputs."""

    features_BCT: np.ndarray
    mask_BT: np.ndarray
    points_P4: torch.Tensor
    level_lengths: list[int]
    outputs: Outputs
    detections: list[Detections]


class Row(NamedTuple):
    """Result of one file at one size. detections: the part of the final detections that is equal, 0 to 1."""

    batch: int
    time: int
    parity: Parity
    detections: float
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "time": self.time,
            **self.parity._asdict(),
            "ok": self.ok,
            "detections": self.detections,
        }


def sizes(config: Config) -> list[tuple[int, int]]:
    """The (batch, time) pairs to check: `SIZES`, made to fit the detector's padded lengths and longest input."""
    multiple = config.padding_multiple
    scale = min(1.0, build_generator(config.model).max_frames / SIZES[0][1])
    return [(batch, max(round(time * scale) // multiple, 1) * multiple) for batch, time in SIZES]


def traced_time(config: Config) -> int:
    """A short length for the exporters to trace, which `sizes` does not hold."""
    stride = config.model.coarsest_stride
    checked = {time for _, time in sizes(config)}
    return next(stride * n for n in range(5, 9) if stride * n not in checked)


def make_case(detector: Detector, config: Config, batch: int, time: int) -> Case:
    """Random features of ragged lengths, and what the detector makes of them in float64."""
    rng = np.random.default_rng(batch * time)
    mask_BT = np.arange(time) < np.linspace(0.6 * time, time - 3, batch)[:, None]
    features_BCT = rng.standard_normal((batch, detector.settings.embedding.input_c, time), dtype=np.float32)
    features_BCT *= mask_BT[:, None]
    exact = copy.deepcopy(detector).eval().double()
    with torch.inference_mode():
        tensors = exact(torch.from_numpy(features_BCT).double(), torch.from_numpy(mask_BT))
    outputs = Outputs(*(tensor.numpy() for tensor in tensors))
    points_P4 = detector.points(time)
    return Case(
        features_BCT,
        mask_BT,
        points_P4,
        detector.level_lengths(time),
        outputs,
        _detect(outputs, points_P4, mask_BT, config),
    )


def own_error(detector: Detector, cases: Iterable[Case], dtype: str) -> Parity:
    """How far PyTorch itself gets from the true outputs of any of `cases` when it computes in `dtype`.

    Of several, because at one small size the figures are a matter of luck.
    """
    if dtype == "int8":
        inner, lower = torch.float32, fold(detector, torch.int8, packed=False)
    else:
        inner = getattr(torch, dtype)
        lower = copy.deepcopy(detector).eval().to(inner)
    errors = []
    for case in cases:
        with torch.inference_mode():
            features = torch.from_numpy(case.features_BCT).to(inner)
            cls_logits, offsets, point_mask = lower(features, torch.from_numpy(case.mask_BT))
        outputs = Outputs(cls_logits.float().numpy(), offsets.float().numpy(), point_mask.numpy())
        errors.append(compare(outputs, case.outputs, case.level_lengths))
    return Parity(*(max(values) for values in list(zip(*errors))[:2]), ok=all(error.ok for error in errors))


def check(session: Session, case: Case, config: Config, own: Parity | None = None) -> Row:
    """Run one file on one case.

    Args:
        own: of a file in less than float32, the error of PyTorch (`own_error`), which may be exceeded `MARGIN` times.
    """
    outputs = session.run(case.features_BCT, case.mask_BT)
    parity = compare(outputs, case.outputs, case.level_lengths)
    agreement = 0.0
    if np.isfinite(parity.max_abs):
        found = _detect(outputs, case.points_P4, case.mask_BT, config)
        agreement = min(agreeing(a, b) for a, b in zip(found, case.detections))
    if own is None:
        ok = parity.ok and agreement >= AGREEMENT
    else:
        # Not of the largest difference, which is one draw of the rounding's tail.
        ok = np.isfinite(parity.max_abs) and parity.relative_l2 <= MARGIN * own.relative_l2
    return Row(*case.mask_BT.shape, parity, agreement, bool(ok))


def agreeing(found: Detections, expected: Detections) -> float:
    """The part of two sets of detections that is equal: same class, segment and score, each paired with one other."""
    total = max(len(found.scores_N), len(expected.scores_N))
    matched = 0
    for label in np.intersect1d(found.labels_N, expected.labels_N):
        ours, theirs = (_of_class(detections, label) for detections in (found, expected))
        near = (np.abs(ours[:, None] - theirs) <= (SECONDS, SECONDS, SCORE)).all(2)
        # Both orders are by score, so pairing each with its first free partner is enough.
        free = np.ones(len(theirs), dtype=bool)
        for row in near:
            partner = np.flatnonzero(row & free)
            if partner.size:
                free[partner[0]] = False
                matched += 1
    return matched / total if total else 1.0


def _of_class(detections: Detections, label: int) -> np.ndarray:
    chosen = np.asarray(detections.labels_N) == label
    return np.column_stack([np.asarray(detections.segments_N2)[chosen], np.asarray(detections.scores_N)[chosen]])


def _detect(outputs: Outputs, points_P4: torch.Tensor, mask_BT: np.ndarray, config: Config) -> list[Detections]:
    timing = VideoTiming(FPS, None, *config.dataset.grid)
    cls_logits, offsets, point_mask = (torch.from_numpy(value) for value in outputs)
    videos = [timing] * len(mask_BT)
    return detect(cls_logits.float(), offsets.float(), point_mask, points_P4, videos, config.post)
