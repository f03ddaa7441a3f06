"""Synthetic data sets with planted actions, in the layout of THUMOS14: something to learn in a minute.

    python -m rdfa.data.synthetic --output demo/data
    python -m rdfa.data.synthetic --output /tmp/anet --num_classes 200 --feature_dim 2048 --num_train 500 --num_test 100

writes `annotations.json` and `features/<video id>.npy` (float32 [clips, channels]). A clip's features are noise of unit
variance, plus 0.9 times the signature of every action that runs (a pattern of +-1, one per class), plus 0.9 times a
pattern that all classes share on the two clips around each start, and another around each end. Lengths of actions are
spread evenly over the octaves from 4 clips to a third of the video, so every level of the pyramid has some to find; one
in five begins before its predecessor has ended.

The files are the same, bit for bit, on every platform: only the raw output of PCG64, + - * / and comparisons are used.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from rdfa import cli
from rdfa.data.settings import DatasetSettings
from rdfa.errors import UsageError
from rdfa.files import replacing

FPS = 30.0
AMPLITUDE = 0.9
SHORTEST = 4  # clips
SPLITS = (("Validation", "video_validation"), ("Test", "video_test"))


def write_dataset(
    output: str | os.PathLike,
    num_train: int = 40,
    num_test: int = 16,
    num_classes: int = 5,
    feature_dim: int = 32,
    min_len: int = 100,
    max_len: int = 250,
    seed: int = 0,
) -> Path:
    """Write a data set of `num_train` + `num_test` videos of `min_len` to `max_len` clips; see above.

    Returns:
        The path of the annotation file.

    Raises:
        UsageError: a size that is not positive, or videos too short to hold an action.
    """
    sizes = {"num_train": num_train, "num_test": num_test, "num_classes": num_classes, "feature_dim": feature_dim}
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"--{name} {value}: must be at least 1")
    if not 6 * SHORTEST <= min_len <= max_len:
        raise UsageError(f"--min_len {min_len}, --max_len {max_len}: {6 * SHORTEST} <= min_len <= max_len is needed")
    folder = Path(output)
    draw = _Draw(seed)
    patterns = _patterns(draw, num_classes + 2, feature_dim)
    database = {}
    for (subset, prefix), count in zip(SPLITS, (num_train, num_test)):
        deck: list[int] = []  # classes are dealt in shuffled rounds, so that every split has all of them
        for number in range(1, count + 1):
            video_id = f"{prefix}_{number:07d}"
            length = draw.integer(min_len, max_len)
            actions = _plan(draw, length, num_classes, deck)
            _save(folder / "features" / f"{video_id}.npy", _render(draw, length, actions, patterns))
            database[video_id] = _describe(subset, length, actions)
    path = folder / "annotations.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"version": "synthetic", "database": database}, indent=1), encoding="utf-8")
    return path


class _Draw:
    """Random numbers from raw PCG64 output, which NumPy guarantees to stay as it is (its distributions may change)."""

    def __init__(self, seed: int):
        self._bits = np.random.PCG64(seed)

    def uniform(self, count: int) -> np.ndarray:
        """float64 [count] in [0, 1), multiples of 2^-53."""
        return (self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return low + int(self.uniform(1)[0] * (high - low + 1))

    def shuffled(self, count: int) -> list[int]:
        return np.argsort(self.uniform(count), kind="stable").tolist()


def _patterns(draw: _Draw, count: int, feature_dim: int) -> np.ndarray:
    """[count, C] of +-1, each chosen among 32 drawn as the one that resembles those before it least."""
    patterns = np.zeros((count, feature_dim))
    for row in range(count):
        candidates = np.where(draw.uniform(32 * feature_dim).reshape(32, feature_dim) < 0.5, -1.0, 1.0)
        # Sums of +-1 are exact in any order.
        resemblance = np.abs(candidates @ patterns[:row].T).max(axis=1, initial=0.0)
        patterns[row] = candidates[int(resemblance.argmin())]
    return patterns


def _plan(draw: _Draw, length: int, num_classes: int, deck: list[int]) -> list[tuple[int, int, int]]:
    """Actions (first clip, last clip, class) one after the other until the video is full."""
    actions: list[tuple[int, int, int]] = []
    position = draw.integer(1, 12)
    while True:
        octaves = [SHORTEST * 2**k for k in range(12) if SHORTEST * 2**k <= length // 3]
        shortest = octaves[draw.integer(0, len(octaves) - 1)]
        last = position + draw.integer(shortest, min(2 * shortest, length // 3))
        if last > length - 2:
            # The first one always finds room: it begins at 12 at most and takes no more than a third of the video.
            return actions
        if not deck:
            deck.extend(draw.shuffled(num_classes))
        actions.append((position, last, deck.pop()))
        overlaps = draw.uniform(1)[0] < 0.2
        position = max(last - draw.integer(1, 8), position + SHORTEST) if overlaps else last + draw.integer(6, 24)


def _render(draw: _Draw, length: int, actions: list[tuple[int, int, int]], patterns: np.ndarray) -> np.ndarray:
    """float32 [T, C] features of a video with these actions."""
    channels = patterns.shape[1]
    unit_variance = 3.4641016151377544  # the width of a uniform distribution of variance 1
    features_TC = (draw.uniform(length * channels).reshape(length, channels) - 0.5) * unit_variance
    onset, offset = patterns[-2], patterns[-1]
    for first, last, label in actions:
        features_TC[first : last + 1] += AMPLITUDE * patterns[label]
        features_TC[first - 1 : first + 1] += AMPLITUDE * onset
        features_TC[last : last + 2] += AMPLITUDE * offset
    return features_TC.astype(np.float32)


def _describe(subset: str, length: int, actions: list[tuple[int, int, int]]) -> dict:
    """The entry of a video: clip i lies at (i * feat_stride + num_frames / 2) / fps seconds."""
    settings = DatasetSettings()
    annotations = []
    for first, last, label in actions:
        segment = [round((clip * settings.feat_stride + settings.num_frames / 2) / FPS, 4) for clip in (first, last)]
        annotations.append({"label": f"action_{label}", "label_id": label, "segment": segment})
    duration = ((length - 1) * settings.feat_stride + settings.num_frames) / FPS
    return {"subset": subset, "duration": round(duration, 4), "fps": FPS, "annotations": annotations}


def _save(path: Path, features_TC: np.ndarray) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, features_TC)


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(
        prog="python -m rdfa.data.synthetic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of annotations.json and features/")
    parser.add_argument("--num_train", type=int, default=40, help="videos of subset Validation (default %(default)s)")
    parser.add_argument("--num_test", type=int, default=16, help="videos of subset Test (default %(default)s)")
    parser.add_argument("--num_classes", type=int, default=5, help="(default %(default)s)")
    parser.add_argument("--feature_dim", type=int, default=32, help="channels (default %(default)s)")
    parser.add_argument("--min_len", type=int, default=100, help="clips of the shortest video (default %(default)s)")
    parser.add_argument("--max_len", type=int, default=250, help="clips of the longest video (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    args = parser.parse_args(argv)
    arguments = vars(args)
    path = write_dataset(**arguments)
    print(f"{args.num_train} training and {args.num_test} test videos of {args.num_classes} classes: {path}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
