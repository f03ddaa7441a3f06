"""Clip features: finding the file of a video, and reading it.

Shapes: T clips, C channels.
"""

import contextlib
import gzip
import io
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdfa.data.annotations import spellings
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError

EXTENSIONS = (".npy", ".pt", ".npy.gz")


def find_feature_file(settings: DatasetSettings, video_id: str) -> Path | None:
    """The file `<feature_dir>/<prefix><video id><type><ext>`, or None when there is none.

    An empty `feature_ext` takes the first that exists of .npy, .pt and .npy.gz; an id that brings the extension along
    ("highjump.npy") and ids with or without the prefix ``v_`` are found too.
    """
    stem = next(
        (video_id.removesuffix(extension) for extension in EXTENSIONS if video_id.endswith(extension)), video_id
    )
    for name in (video_id, *spellings(stem)):
        for extension in (settings.feature_ext,) if settings.feature_ext else EXTENSIONS:
            file = settings.feature_prefix + name + settings.feature_type + extension
            path = Path(settings.feature_dir, file)
            if path.is_file():
                return path
    return None


def expected_name(settings: DatasetSettings, video_id: str) -> str:
    """What the feature file of `video_id` should be called, for messages."""
    extension = settings.feature_ext or "{" + ",".join(EXTENSIONS) + "}"
    return settings.feature_prefix + video_id + settings.feature_type + extension


def load_features(path: str | os.PathLike, dimension: int | None = None) -> np.ndarray:
    """Read the features of one video as float32 [T, C].

    Args:
        path: .npy, .npy.gz, or .pt (a tensor or an array; nothing else is unpickled). Any real dtype.
        dimension: the C that is expected; None accepts any.

    Raises:
        RunError: the file is missing, truncated or of another kind; T = 0; a wrong rank or C; NaN or infinite values.
    """
    path = Path(path)
    features = _to_array(path, _read(path))
    if features.ndim != 2:
        raise RunError(
            f"{path}: features of shape {features.shape}: expected two axes, (clips, channels): save one such array"
        )
    if features.shape[0] == 0:
        raise RunError(f"{path}: no clips (shape {features.shape}): extract the features again, or drop the video")
    if dimension is not None and features.shape[1] != dimension:
        hint = (
            "transpose it"
            if features.shape[0] == dimension
            else "use matching features, or set EmbeddingModule.input_c"
        )
        raise RunError(f"{path}: shape {features.shape}: expected {dimension} channels in the last axis; {hint}")
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite, and is refused below
        features = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(features).all():
        bad = np.argwhere(~np.isfinite(features))
        clip, channel = bad[0]
        raise RunError(
            f"{path}: {features[clip, channel]} at clip {clip}, channel {channel} is not finite in float32 "
            f"({len(bad)} of {features.size} values): extract the features again"
        )
    return features


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".pt":
            with _array_globals(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the protocol of a pickle, before it is refused
                return torch.load(path, map_location="cpu", weights_only=True)
        if path.name.endswith(".npy.gz"):
            return np.load(io.BytesIO(gzip.decompress(path.read_bytes())), allow_pickle=False)
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such feature file: check Dataset.feature_dir, or the path given") from error
    except Exception as error:  # a damaged file can make the readers fail in any way
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise RunError(
                f"{path}: needs {code[1]} to be unpickled, which could run anything, so it is not loaded: "
                "save the features alone, with torch.save(tensor, path)"
            ) from error
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise RunError(f"{path}: damaged, or not an array of numbers ({reason}): extract or copy it again") from error
    raise RunError(f"{path}: unknown kind of feature file: expected {', '.join(EXTENSIONS)}")


def _array_globals() -> contextlib.AbstractContextManager:
    """Lets the safe unpickler of torch rebuild numpy arrays, under the names that numpy 1 and 2 write, and no more."""
    reconstruct = np.empty(0).__reduce__()[0]
    dtypes = [
        type(np.dtype(name)) for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
    ]
    names = [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return torch.serialization.safe_globals([*names, np.ndarray, np.dtype, *dtypes])


def _to_array(path: Path, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
        # NumPy has no bfloat16.
        value = (value.float() if value.dtype == torch.bfloat16 else value).detach().resolve_conj().numpy()
    if not isinstance(value, np.ndarray):
        raise RunError(f"{path}: holds a {type(value).__name__}: expected one tensor or array (clips, channels)")
    if value.dtype.kind not in "fiu":
        raise RunError(f"{path}: dtype {value.dtype}: expected real numbers: save the features as float32")
    return value
