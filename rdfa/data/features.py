"""Clip features: finding the files of a video, and reading them.

Shapes: T clips, C channels.
"""

import contextlib
import gzip
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rdfa.data.annotations import spellings
from rdfa.data.pickles import load_pickle
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError, UsageError

HDF5 = (".h5", ".hdf5")
PLAIN = (".npy", ".npz", ".pt", ".pkl", *HDF5)
EXTENSIONS = (*PLAIN, *(extension + ".gz" for extension in PLAIN))
ANY_EXTENSION = "{" + ",".join(PLAIN) + "}[.gz]"  # for messages
ARRAY_NAMES = ("feats", "features")  # the array to take from a file of several
_TORCH_SETTINGS = threading.Lock()
SLACK = 2  # clips by which files of one video may differ in length: streams lose some at the end


class FeatureFile(NamedTuple):
    """Where one array of features is: a file, or the entry `key` of an HDF5 file of many videos."""

    path: Path
    key: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.key is None else f"{self.path}[{self.key}]"


class FeatureFinder:
    """Finds the features of a video by its id.

    They are in `<feature_dir>/<feature_prefix><video id><feature_type><feature_ext>`, one file for each of
    `DatasetSettings.streams`. An empty `feature_ext` takes the first of `EXTENSIONS` that exists; ids with or without
    the prefix ``v_``, or with the extension in them ("highjump.npy"), are found too, and, where there is one file per
    video, so are files without prefix and type. A `feature_dir` that is an HDF5 file holds an entry of that name per
    video, without extension.
    """

    def __init__(self, settings: DatasetSettings):
        self.settings = settings
        self._extensions = (settings.feature_ext,) if settings.feature_ext else EXTENSIONS
        self._hdf5 = {folder for folder, _ in settings.streams if Path(folder).is_file()}
        # Listed once: asking for each file that there may be takes minutes on a file system of the network.
        self._names = {folder: set(list_entries(Path(folder))) for folder, _ in settings.streams}

    def find(self, video_id: str) -> tuple[FeatureFile, ...] | None:
        """The files of a video, one per stream; None where one of them is missing."""
        files = [self._find(folder, kind, video_id) for folder, kind in self.settings.streams]
        return None if None in files else tuple(files)

    def expected(self, video_id: str) -> str:
        """What the missing file of a video should be called, for messages."""
        for folder, kind in self.settings.streams:
            if self._find(folder, kind, video_id) is None:
                name = self.settings.feature_prefix + video_id + kind
                return name if folder in self._hdf5 else name + (self.settings.feature_ext or ".*")
        raise ValueError(f"no file of {video_id} is missing")

    def video_id(self, name: str) -> str | None:
        """The video whose features are called `name`, by the name alone; None if it is no name of features."""
        folder, kind = self.settings.streams[0]
        affixes = [(self.settings.feature_prefix, kind)]
        if len(self.settings.streams) == 1:
            affixes.append(("", ""))
        for prefix, ending in affixes:
            for extension in ("",) if folder in self._hdf5 else self._extensions:
                if name.startswith(prefix) and name.endswith(ending + extension) and not name.startswith("."):
                    return name.removeprefix(prefix).removesuffix(ending + extension)
        return None

    def _find(self, folder: str, kind: str, video_id: str) -> FeatureFile | None:
        extension = next((e for e in EXTENSIONS if video_id.endswith(e)), "")
        ids = dict.fromkeys((video_id, *spellings(video_id.removesuffix(extension))))
        names = dict.fromkeys(self.settings.feature_prefix + name + kind for name in ids)
        if len(self.settings.streams) == 1:
            names |= ids
        for name in names:
            if folder in self._hdf5:
                if name in self._names[folder]:
                    return FeatureFile(Path(folder), name)
                continue
            for extension in self._extensions:
                file = name + extension
                if file in self._names[folder] or ("/" in file and Path(folder, file).is_file()):
                    return FeatureFile(Path(folder, file))
        return None


def list_entries(path: Path) -> list[str]:
    """Names in a folder, or of the entries of an HDF5 file of many videos, sorted; none where there is neither."""
    if path.is_dir():
        return sorted(os.listdir(path))
    if not path.is_file():
        return []
    if not path.name.endswith(HDF5):
        raise UsageError(
            f"Dataset.feature_dir = {str(path)!r} is a file: expected a folder, or one of {', '.join(HDF5)}"
        )
    try:
        with _h5py().File(path, "r") as file:
            return sorted(file)
    except OSError as error:
        raise RunError(f"{path}: damaged, or no HDF5 file ({error}): copy it again") from error


def load_features(file: FeatureFile | str | os.PathLike, dimension: int | None = None) -> np.ndarray:
    """Read one array of features as float32 [T, C].

    Args:
        file: of one of the kinds in `EXTENSIONS`; several arrays in one file, of which none is called by one of
            `ARRAY_NAMES`, are refused. Nothing is unpickled but arrays and tensors. Any real dtype.
        dimension: the C that is expected; None accepts any.

    Raises:
        RunError: the file is missing, truncated or of another kind; T = 0; a wrong rank or C; NaN or infinite values.
        UsageError: an HDF5 file, and h5py is not installed.
    """
    features = read_array(file)
    check_channels(features, file, dimension)
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite, and is refused below
        features = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(features).all():
        bad = np.argwhere(~np.isfinite(features))
        clip, channel = bad[0]
        raise RunError(
            f"{file}: {features[clip, channel]} at clip {clip}, channel {channel} is not finite in float32 "
            f"({len(bad)} of {features.size} values): extract the features again"
        )
    return features


def join_features(parts: Sequence[np.ndarray], files: Sequence[FeatureFile]) -> np.ndarray:
    """Arrays [T, C_i] of one video side by side, [T, sum of C_i]; up to `SLACK` clips that some have more are cut.

    Raises:
        RunError: lengths that differ by more.
    """
    if len(parts) == 1:
        return parts[0]
    lengths = [len(part) for part in parts]
    if max(lengths) - min(lengths) > SLACK:
        named = ", ".join(f"{file}: {length}" for file, length in zip(files, lengths))
        raise RunError(f"files of one video differ in clips ({named}): extract them with one stride")
    return np.concatenate([part[: min(lengths)] for part in parts], axis=1)


def check_channels(features: np.ndarray, where: object, dimension: int | None) -> None:
    """Raises RunError unless `features` have `dimension` channels, or it is None."""
    if dimension is not None and features.shape[1] != dimension:
        hint = (
            "transpose it"
            if features.shape[0] == dimension
            else "use matching features, or set EmbeddingModule.input_c"
        )
        raise RunError(f"{where}: shape {features.shape}: expected {dimension} channels in the last axis; {hint}")


def count_clips(file: FeatureFile) -> int:
    """T of a feature file, from its header alone where it is a plain .npy or HDF5 file; others are read whole.

    Raises:
        RunError, UsageError: as `load_features`.
    """
    # Of a file that is damaged, or holds a single number, `read_array` says what is wrong.
    with contextlib.suppress(OSError, ValueError, EOFError, IndexError):
        if file.path.suffix == ".npy":
            return np.load(file.path, mmap_mode="r", allow_pickle=False).shape[0]
        if file.path.suffix in HDF5:
            with _h5py().File(file.path, "r") as root:
                return _find_h5(root, file).shape[0]
    return len(read_array(file))


def read_array(file: FeatureFile | str | os.PathLike) -> np.ndarray:
    """The array of a feature file as it is, of any real dtype and with any values; [T, C], T > 0.

    Raises:
        RunError, UsageError: as `load_features`.
    """
    file = file if isinstance(file, FeatureFile) else FeatureFile(Path(file))
    features = _to_array(file, _read(file))
    if features.ndim != 2:
        raise RunError(
            f"{file}: features of shape {features.shape}: expected two axes, (clips, channels): save one such array"
        )
    if features.shape[0] == 0:
        raise RunError(f"{file}: no clips (shape {features.shape}): extract the features again, or drop the video")
    return features


def _read(file: FeatureFile) -> Any:
    name = file.path.name.removesuffix(".gz")
    reader = next((reader for extension, reader in _READERS.items() if name.endswith(extension)), None)
    if reader is None:
        raise RunError(f"{file}: unknown kind of feature file: expected {', '.join(PLAIN)}, or one of them with .gz")
    try:
        compressed = file.path.name != name
        value = reader(io.BytesIO(gzip.decompress(file.path.read_bytes())) if compressed else file.path, file)
        return value[_choose(list(value), file)] if isinstance(value, dict) else value
    except FileNotFoundError as error:
        raise RunError(f"{file}: no such feature file: check Dataset.feature_dir, or the path given") from error
    except (RunError, UsageError):
        raise
    except Exception as error:  # a damaged file can make the readers fail in any way
        code = re.search(r"GLOBAL ([\w.]+)|asks for ([\w.]+)", str(error))
        if code:
            raise RunError(
                f"{file}: needs {code[1] or code[2]} to be unpickled, which could run anything, so it is not loaded: "
                "save the features alone, with torch.save(tensor, path) or numpy.save(path, array)"
            ) from error
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise RunError(f"{file}: damaged, or not an array of numbers ({reason}): extract or copy it again") from error


def _read_npy(source: Path | io.BytesIO, file: FeatureFile) -> Any:
    return np.load(source, allow_pickle=False)


def _read_npz(source: Path | io.BytesIO, file: FeatureFile) -> Any:
    with np.load(source, allow_pickle=False) as arrays:
        return arrays[_choose(arrays.files, file)]


def _read_pt(source: Path | io.BytesIO, file: FeatureFile) -> Any:
    # What torch may rebuild is a setting of the process, which a second thread must not take back in between.
    with _TORCH_SETTINGS, _array_globals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the protocol of a pickle, before it is refused
        return torch.load(source, map_location="cpu", weights_only=True)


def _read_pkl(source: Path | io.BytesIO, file: FeatureFile) -> Any:
    return load_pickle(source.read_bytes() if isinstance(source, Path) else source.read())


def _read_h5(source: Path | io.BytesIO, file: FeatureFile) -> Any:
    with _h5py().File(source, "r") as root:
        return _find_h5(root, file)[()]


def _find_h5(root: Any, file: FeatureFile) -> Any:
    """The entry of an open HDF5 file that holds the features."""
    node = root if file.key is None else root[file.key]
    while not hasattr(node, "shape"):
        node = node[_choose(list(node), file)]
    return node


_READERS: dict[str, Callable[[Path | io.BytesIO, FeatureFile], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pkl": _read_pkl,
    **dict.fromkeys(HDF5, _read_h5),
}


def _choose(names: list[str], file: FeatureFile) -> str:
    """The name of the features among those of a file: the only one, or one of `ARRAY_NAMES`."""
    chosen = names if len(names) == 1 else [name for name in names if name in ARRAY_NAMES]
    if len(chosen) != 1:
        raise RunError(
            f"{file}: holds {len(names)} arrays ({', '.join(map(str, names[:5]))}): expected one, or one called "
            f"{' or '.join(ARRAY_NAMES)}"
        )
    return chosen[0]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UsageError("HDF5 features need h5py: pip install 'rdfa-s6[h5]'") from error
    return h5py


@contextlib.contextmanager
def _array_globals() -> Iterator[None]:
    """Lets the safe unpickler of torch rebuild numpy arrays, under the names that numpy 1 and 2 write, and no more."""
    reconstruct = np.empty(0).__reduce__()[0]
    dtypes = [
        type(np.dtype(name)) for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
    ]
    names = [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*names, np.ndarray, np.dtype, *dtypes]):
        yield


def _to_array(file: FeatureFile, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
        # NumPy has no bfloat16.
        value = (value.float() if value.dtype == torch.bfloat16 else value).detach().resolve_conj().numpy()
    if not isinstance(value, np.ndarray):
        raise RunError(f"{file}: holds a {type(value).__name__}: expected one tensor or array (clips, channels)")
    if value.dtype.kind not in "fiu":
        raise RunError(f"{file}: dtype {value.dtype}: expected real numbers: save the features as float32")
    return value
