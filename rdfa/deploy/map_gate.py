"""The gate of files in int8: what they lose of the mean average precision on a set of the user's videos.

How far outputs may be from float32 is no matter of rounding errors here, and no bound on them says what it does to
detections; so the detections of real videos are measured.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rdfa.errors import RunError, UsageError
from rdfa.evaluation.given_set import TIOU, GivenSet, OpenedSet
from rdfa.inference.settings import PostProcessingSettings
from rdfa.runtime.session import Session

DTYPES = ("int8",)
MAX_LOSS = 0.005


class MapGate(NamedTuple):
    """given: features and ground truth. max_loss: of the average mAP of float32 there (mean over tIoU 0.3 to 0.7; of a
    class-agnostic detector, all actions as one class)."""

    given: GivenSet
    max_loss: float = MAX_LOSS


def require(dtypes: set[str], gate: MapGate | None) -> None:
    """Raises UsageError unless there is a gate just where one of `dtypes` needs it."""
    if dtypes & set(DTYPES) and gate is None:
        raise UsageError(
            "int8 is written only where its mAP on annotated videos is measured: give --annotations A.json and "
            f"--features DIR (--max_map_loss {MAX_LOSS} is what it may lose)"
        )
    if gate and not dtypes & set(DTYPES):
        raise UsageError("--annotations and --features measure the mAP of files in int8: add int8 to --dtype")
    if gate and not 0 <= gate.max_loss < 1:
        raise UsageError(f"--max_map_loss {gate.max_loss}: give a part of the mAP from 0 to below 1")


def pass_files(
    gate: MapGate,
    videos: OpenedSet,
    post: PostProcessingSettings,
    manifest: dict[str, Any],
    exact: Session,
    sessions: Mapping[str, Session],
    report: Callable[[str], None],
) -> None:
    """Fill in ``map_gate`` of each file.

    Args:
        videos: those given. exact: the detector in float32. sessions: the files to measure, by name.

    Raises:
        RunError: a file loses too much, or the detector finds too little on these videos for a
            loss to show.
    """
    named = f"{len(videos)} videos of {Path(gate.given.annotations).name}"

    def measure(name: str, session: Session) -> float:
        report(f"average mAP of {name} on {named}")
        return videos.average_map(session, post, manifest["classes"])

    wanted = measure("float32", exact)
    if wanted <= gate.max_loss:
        raise RunError(
            f"the average mAP of float32 is {wanted:.4f} on {named}, where no loss of {gate.max_loss:g} can show: "
            "give videos of what the detector was trained to find, or a lower --max_map_loss"
        )
    for name, session in sessions.items():
        found = measure(name, session)
        if found < wanted - gate.max_loss:
            raise RunError(
                f"{name} has an average mAP of {found:.4f} on {named}, float32 of {wanted:.4f}: a loss of more than "
                f"{gate.max_loss:g}; nothing was written: leave int8 out, or allow more with --max_map_loss"
            )
        manifest["files"][name]["map_gate"] = {
            "average_map": found,
            "float32_average_map": wanted,
            "max_loss": gate.max_loss,
            "annotations": Path(gate.given.annotations).name,
            "subset": videos.subset,
            "videos": len(videos),
            "tiou": [round(float(value), 3) for value in TIOU],
        }
