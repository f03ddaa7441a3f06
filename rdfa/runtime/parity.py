"""How far two sets of outputs are apart, and whether that is rounding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rdfa.runtime.session import Outputs

# Each is five to thirty times the float32 rounding of the published code against its own float64.
ABSOLUTE, RELATIVE, RELATIVE_L2 = 1e-4, 1e-4, 3e-5
# Levels whose values are mostly exact zeros have no meaningful relative error of their own: least RMS that counts.
LEAST_RMS = 1e-3


class Parity(NamedTuple):
    """Largest difference of any logit or offset; largest relative L2 difference of any level; whether both may pass."""

    max_abs: float
    relative_l2: float
    ok: bool


def compare(outputs: Outputs, reference: Outputs, level_lengths: Sequence[int]) -> Parity:
    """Compare level by level, because an error in the deepest part shows in the coarsest level alone.

    ok: |d| <= 1e-4 + 1e-4 |ref| everywhere, ||d|| <= 3e-5 ||ref|| in each level, the same point mask, all finite.

    Args:
        reference: of any precision. level_lengths: points per pyramid level; their sum is P.
    """
    wrong = Parity(float("inf"), float("inf"), False)
    if any(np.shape(a) != np.shape(b) for a, b in zip(outputs, reference)):
        return wrong
    if not np.array_equal(outputs.point_mask, reference.point_mask):
        return wrong
    max_abs, relative_l2, close = 0.0, 0.0, True
    bounds = np.cumsum(level_lengths)[:-1]
    for values, wanted in zip(outputs[:2], reference[:2]):
        for level, ref in zip(np.split(values, bounds, axis=1), np.split(wanted, bounds, axis=1)):
            ref = ref.astype(np.float64)
            difference = np.abs(level - ref)
            if not np.isfinite(difference).all():
                return wrong
            max_abs = max(max_abs, float(difference.max(initial=0.0)))
            floor = LEAST_RMS * np.sqrt(ref.size)
            relative_l2 = max(relative_l2, float(np.linalg.norm(difference) / max(np.linalg.norm(ref), floor)))
            close = close and bool((difference <= ABSOLUTE + RELATIVE * np.abs(ref)).all())
    return Parity(max_abs, relative_l2, close and relative_l2 <= RELATIVE_L2)
