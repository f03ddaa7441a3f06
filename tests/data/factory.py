"""Small annotation files and features for the tests of this room."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden"

real_data = pytest.mark.skipif("RDFA_DATA" not in os.environ, reason="RDFA_DATA is not set: no real data")


def real(name: str) -> Path:
    return Path(os.environ["RDFA_DATA"], name)


def video(subset="Validation", annotations=(([1.0, 2.0], "A", 0),), **fields) -> dict:
    """The entry of a video; `annotations` are (segment, label, label_id), None leaving a field out."""
    entries = [
        {key: value for key, value in zip(("segment", "label", "label_id"), parts) if value is not None}
        for parts in annotations
    ]
    return {"subset": subset, "duration": 20.0, "fps": 30.0, "annotations": entries} | fields


def write_annotations(path: Path, **videos: dict) -> Path:
    path.write_text(json.dumps({"database": videos}))
    return path


def write_features(folder: Path, lengths: dict[str, int], channels: int = 4) -> Path:
    """.npy files [T, C] whose first channel counts the clips."""
    folder.mkdir(exist_ok=True)
    for name, length in lengths.items():
        features_TC = np.random.default_rng(length).standard_normal((length, channels)).astype(np.float32)
        features_TC[:, 0] = np.arange(length)
        np.save(folder / f"{name}.npy", features_TC)
    return folder
