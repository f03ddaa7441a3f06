"""Feature files: the kinds that are read, how they are found, and every way to be unusable."""

import gzip
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rdfa.data.features import (
    EXTENSIONS,
    FeatureFile,
    FeatureFinder,
    count_clips,
    join_features,
    list_entries,
    load_features,
)
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError, UsageError
from tests.data.factory import real, real_data

X_TC = np.arange(20, dtype=np.float64).reshape(5, 4) / 8 - 1


def save(path, value):
    """Write features as the extension says."""
    plain = path.with_name(path.name.removesuffix(".gz"))
    if plain.suffix == ".pt":
        torch.save(value, plain)
    elif plain.suffix == ".npz":
        np.savez_compressed(plain, features=value)
    elif plain.suffix == ".pkl":
        plain.write_bytes(pickle.dumps(value, protocol=4))
    elif plain.suffix in (".h5", ".hdf5"):
        save_h5(plain, {"whatever": value})
    else:
        np.save(plain, value)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def save_h5(path, entries):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, value in entries.items():
            file[name] = value
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", ">f4"])
@pytest.mark.parametrize("name", ["x" + extension for extension in EXTENSIONS])
def test_arrays_of_any_real_type(tmp_path, name, dtype):
    expected = X_TC.astype(dtype)
    loaded = load_features(save(tmp_path / name, expected), dimension=4)
    assert loaded.dtype == np.float32 and loaded.flags.c_contiguous
    assert np.array_equal(loaded, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_float_type(tmp_path, dtype):
    loaded = load_features(save(tmp_path / "x.pt", torch.from_numpy(X_TC).to(dtype)))
    assert loaded.dtype == np.float32 and np.array_equal(loaded, X_TC)


@pytest.mark.parametrize(
    "value",
    [torch.nn.Parameter(torch.from_numpy(X_TC)), torch.from_numpy(X_TC.T.copy()).T],
    ids=["parameter", "strided"],
)
def test_tensors_that_need_care(tmp_path, value):
    assert np.array_equal(load_features(save(tmp_path / "x.pt", value)), X_TC)


def test_tensor_in_the_old_format(tmp_path):
    torch.save(torch.from_numpy(X_TC), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert np.array_equal(load_features(tmp_path / "x.pt"), X_TC)


def test_one_clip(tmp_path):
    assert load_features(save(tmp_path / "x.npy", X_TC[:1])).shape == (1, 4)


def with_value(value):
    features = X_TC.copy()
    features[2, 1] = value
    return features


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x.npy", X_TC[0], r"features of shape \(4,\): expected two axes, \(clips, channels\)"),
        ("x.pt", torch.zeros(1, 5, 4), r"features of shape \(1, 5, 4\): expected two axes"),
        ("x.npy", X_TC[:0], r"no clips \(shape \(0, 4\)\): extract the features again, or drop the video"),
        (
            "x.npy",
            np.zeros((5, 3)),
            r"shape \(5, 3\): expected 4 channels in the last axis; .* set EmbeddingModule\.input_c",
        ),
        ("x.npy", np.zeros((4, 5)), r"shape \(4, 5\): expected 4 channels in the last axis; transpose it"),
        (
            "x.npy",
            with_value(np.nan),
            r"nan at clip 2, channel 1 is not finite in float32 \(1 of 20 values\): extract",
        ),
        ("x.pt", torch.tensor(with_value(-np.inf)), "-inf at clip 2, channel 1"),
        ("x.npy", with_value(1e300), "inf at clip 2, channel 1"),
        ("x.npy", X_TC.astype(complex), "dtype complex128: expected real numbers"),
        ("x.npy", np.array([["a"]]), "dtype <U1: expected real numbers"),
        ("x.npy", X_TC > 0, "dtype bool: expected real numbers"),
        ("x.pkl", np.zeros((5, 3)), r"shape \(5, 3\): expected 4 channels"),
        ("x.h5", with_value(np.nan), r"nan at clip 2, channel 1 is not finite in float32 \(1 of 20 values\)"),
        ("x.pt", [torch.zeros(5, 4)], r"holds a list: expected one tensor or array \(clips, channels\)"),
        ("x.pkl", "features", "holds a str: expected one tensor or array"),
        ("x.pt", {"rgb": torch.zeros(5, 4), "flow": 0}, r"holds 2 arrays \(rgb, flow\): expected one, or one called"),
        ("x.pkl", {}, r"holds 0 arrays \(\): expected one, or one called feats or features"),
        ("x.pt", torch.zeros(5, 4).to_sparse(), "holds a Tensor: expected one tensor or array"),
    ],
)
def test_unusable_values(tmp_path, name, value, message):
    with pytest.raises(RunError, match=rf"{name}: .*{message}") as error:
        load_features(save(tmp_path / name, value), dimension=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [{"a": X_TC}, {"shape": 4, "feats": X_TC}, {"features": X_TC, "fps": 30}], ids=str)
@pytest.mark.parametrize("name", ["x.pt", "x.pkl"])
def test_one_array_among_others(tmp_path, name, value):
    value = {key: torch.tensor(v) for key, v in value.items()} if name == "x.pt" else value
    assert np.array_equal(load_features(save(tmp_path / name, value)), X_TC)


def test_archives_of_several_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", feats=X_TC, other=X_TC[:1])
    assert np.array_equal(load_features(tmp_path / "x.npz"), X_TC)
    np.savez(tmp_path / "y.npz", X_TC, X_TC)
    with pytest.raises(
        RunError, match=r"y\.npz: holds 2 arrays \(arr_0, arr_1\): expected one, or one called feats or"
    ):
        load_features(tmp_path / "y.npz")


def test_hdf5_of_many_videos(tmp_path):
    path = save_h5(tmp_path / "all.h5", {"v_a": X_TC, "b/c3d": X_TC[:2], "c/x": X_TC, "c/y": X_TC})
    assert list_entries(path) == ["b", "c", "v_a"]
    finder = FeatureFinder(settings(path, ext=".npy"))  # entries have no extension
    assert finder.find("a") == (FeatureFile(path, "v_a"),)
    assert finder.find("d") is None and finder.expected("d") == "d"
    assert np.array_equal(load_features(*finder.find("a")), X_TC)
    assert np.array_equal(load_features(*finder.find("b")), X_TC[:2])
    with pytest.raises(RunError, match=r"all\.h5\[c\]: holds 2 arrays \(x, y\)"):
        load_features(*finder.find("c"))
    with pytest.raises(RunError, match=r"all\.h5\[none\]: damaged, or not an array"):
        load_features(FeatureFile(path, "none"))


def test_folders_that_are_files(tmp_path):
    (tmp_path / "x.npy").touch()
    with pytest.raises(UsageError, match=r"feature_dir = '.*x\.npy' is a file: expected a folder, or one of \.h5"):
        FeatureFinder(settings(tmp_path / "x.npy"))
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(RunError, match=r"x\.h5: damaged, or no HDF5 file"):
        FeatureFinder(settings(tmp_path / "x.h5"))


def test_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "x.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError, match=r"HDF5 features need h5py: pip install 'rdfa-s6\[h5\]'"):
        load_features(tmp_path / "x.h5")


@pytest.mark.parametrize("name", ["x" + extension for extension in EXTENSIONS if "hdf5" not in extension])
def test_truncated_anywhere(tmp_path, name):
    raw = save(tmp_path / name, X_TC).read_bytes()
    for size in [0, 1, 5, 11, len(raw) // 3, len(raw) // 2, len(raw) - 30]:
        (tmp_path / name).write_bytes(raw[:size])
        with pytest.raises(
            RunError, match=rf"{name}: damaged, or not an array of numbers \(.+\): extract or copy"
        ) as error:
            load_features(tmp_path / name)
        assert "\n" not in str(error.value)


def test_damaged_old_format(tmp_path):
    torch.save(torch.from_numpy(X_TC), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "x.pt").read_bytes()
    for position in range(0, len(raw), 7):
        (tmp_path / "x.pt").write_bytes(raw[:position])
        with pytest.raises(RunError, match="damaged"):
            load_features(tmp_path / "x.pt")


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_files_is_not_run(tmp_path):
    target = tmp_path / "ran"
    with open(tmp_path / "raw.pt", "wb") as file:
        pickle.dump(Code(target), file)
    torch.save(Code(target), tmp_path / "code.pt")
    np.save(tmp_path / "object.npy", np.array([Code(target)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", np.array([Code(target)], dtype=object), allow_pickle=True)
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"features": Code(target)}))
    (tmp_path / "code.pkl.gz").write_bytes(gzip.compress(pickle.dumps([X_TC, Code(target)])))
    messages = {
        "code.pkl": r"needs posix\.mkdir to be unpickled, which could run anything, so it is not loaded: save",
        "code.pkl.gz": r"needs posix\.mkdir to be unpickled",
        "object.npz": "damaged, or not an array of numbers|holds 2 arrays",
        "code.pt": r"needs posix\.mkdir to be unpickled, which could run anything, so it is not loaded: save",
        "raw.pt": "damaged, or not an array of numbers",
        "object.npy": "damaged, or not an array of numbers",
    }
    for name, message in messages.items():
        with pytest.raises(RunError, match=message) as error:
            load_features(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not target.exists()
    pickle.loads((tmp_path / "raw.pt").read_bytes())
    assert target.exists()  # the file was dangerous indeed


def test_loading_leaves_the_safe_list_alone(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    load_features(save(tmp_path / "x.pt", X_TC))
    assert set(torch.serialization.get_safe_globals()) == before


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(RunError, match=r"x\.npy: no such feature file: check Dataset\.feature_dir, or the path given"):
        load_features(tmp_path / "x.npy")
    (tmp_path / "x.csv").touch()
    with pytest.raises(
        RunError, match=r"x\.csv: unknown kind of feature file: expected \.npy, .*, or one of them with"
    ):
        load_features(tmp_path / "x.csv")


def settings(folder, prefix="", kind="", ext=""):
    folder = str(folder) if not isinstance(folder, list) else [str(f) for f in folder]
    return DatasetSettings(feature_dir=folder, feature_prefix=prefix, feature_type=kind, feature_ext=ext)


def find(*args, video_id="a"):
    found = FeatureFinder(settings(*args)).find(video_id)
    return found and [file.path for file in found]


@pytest.mark.parametrize(
    ("file", "parts", "video_id"),
    [
        ("a.npy", ("", "", ""), "a"),
        ("a.pt", ("", "", ""), "a"),
        ("a.npy.gz", ("", "", ""), "a"),
        ("i3d-a_rgb.npy", ("i3d-", "_rgb", ""), "a"),
        ("i3d-a_rgb.pt", ("i3d-", "_rgb", ".pt"), "a"),
        ("v_a.npy", ("", "", ""), "a"),
        ("a.npy", ("", "", ""), "v_a"),
        ("v_a.npy", ("", "", ".npy"), "v_a"),
        ("highjump.npy", ("", "", ""), "highjump.npy"),
        ("highjump.npy.gz", ("", "", ""), "highjump.npy"),
        ("highjump.npy", ("", "", ".npy"), "highjump.npy"),
    ],
)
def test_finding_files(tmp_path, file, parts, video_id):
    assert find(tmp_path, *parts, video_id=video_id) is None
    (tmp_path / file).touch()
    assert find(tmp_path, *parts, video_id=video_id) == [tmp_path / file]


def test_exact_names_come_first(tmp_path):
    for name in ("a.pt", "v_a.npy", "a.npy"):
        (tmp_path / name).touch()
        assert find(tmp_path)[0].name != "v_a.npy"
    assert find(tmp_path) == [tmp_path / "a.npy"]
    assert find(tmp_path, "", "", ".pt") == [tmp_path / "a.pt"]
    assert find(tmp_path, video_id="b") is None


def test_names_without_prefix_and_type_are_found_last(tmp_path):
    (tmp_path / "a.npy").touch()
    assert find(tmp_path, "v_", "_pool") == [tmp_path / "a.npy"]
    (tmp_path / "v_a_pool.pt").touch()
    assert find(tmp_path, "v_", "_pool") == [tmp_path / "v_a_pool.pt"]
    assert find(tmp_path, "", ["_rgb", "_flow"]) is None  # one file cannot stand for two


def test_several_files_per_video(tmp_path):
    for folder in ("rgb", "flow"):
        (tmp_path / folder).mkdir()
    folders = [tmp_path / "rgb", tmp_path / "flow"]
    save(folders[0] / "v_a.npy", X_TC), save(folders[1] / "a.pt", -X_TC)
    assert find(folders) == [folders[0] / "v_a.npy", folders[1] / "a.pt"]
    for kind in ("_rgb", "_flow"):
        save(tmp_path / f"a{kind}.npy", X_TC)
    assert find(tmp_path, "", ["_flow", "_rgb"]) == [tmp_path / "a_flow.npy", tmp_path / "a_rgb.npy"]
    (tmp_path / "a_rgb.npy").unlink()
    finder = FeatureFinder(settings(tmp_path, "", ["_flow", "_rgb"], ".npy"))
    assert finder.find("a") is None and finder.expected("a") == "a_rgb.npy"


def test_streams_are_joined_along_channels():
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    files = [FeatureFile("rgb.npy"), FeatureFile("flow.h5", "a")]
    assert join_features([rows], files[:1]) is rows
    assert join_features([rows, -rows[:, :1]], files).tolist() == np.hstack([rows, -rows[:, :1]]).tolist()
    assert join_features([rows, rows[:4]], files).tolist() == np.hstack([rows[:4], rows[:4]]).tolist()
    with pytest.raises(
        RunError, match=r"differ in clips \(rgb\.npy: 6, flow\.h5\[a\]: 3\): extract them with one stride"
    ):
        join_features([rows, rows[:3]], files)


def test_expected_names(tmp_path):
    def expected(*parts):
        return FeatureFinder(settings(tmp_path, *parts)).expected("a")

    assert expected("p_", "_t") == "p_a_t.*"
    assert expected("p_", "_t", ".pt") == "p_a_t.pt"


@pytest.mark.parametrize(
    ("name", "parts", "video_id"),
    [
        ("a.npy", ("", "", ""), "a"),
        ("a.pkl.gz", ("", "", ""), "a"),
        ("v_a_t.pt", ("v_", "_t", ""), "a"),
        ("a.pt", ("v_", "_t", ""), "a"),
        ("a.pt", ("", "", ".npy"), None),
        ("a.txt", ("", "", ""), None),
        (".a.npy", ("", "", ""), None),
        ("a_rgb.npy", ("", ["_rgb", "_flow"], ""), "a"),
        ("a_flow.npy", ("", ["_rgb", "_flow"], ""), None),
    ],
)
def test_videos_of_files(tmp_path, name, parts, video_id):
    assert FeatureFinder(settings(tmp_path, *parts)).video_id(name) == video_id


@real_data
def test_real_features():
    clips = [load_features(path, dimension=2048) for path in sorted(real("gym_i3d/i3d_features").glob("*.npy"))]
    assert len(clips) == 30 and {len(clip) for clip in clips} == {1, 2, 3, 4, 5, 6}
    assert np.load(real("gym_i3d/i3d_features/squat_18.npy")).dtype == np.float64
    assert load_features(real("gym_i3d/highjump.npy.gz")).shape == (164, 2048)
    assert load_features(real("thumos14/c3d_features/video_test_0000526.npy")).shape == (1418, 500)


@real_data
@pytest.mark.parametrize("kind", ["rgb", "flow"])
def test_real_torch_file_with_a_configuration_inside(kind):
    with pytest.raises(RunError, match=r"needs omegaconf\.dictconfig\.DictConfig to be unpickled"):
        load_features(real(f"features_i3d_video_features/v_GGSY1Qvo990_pwc_24_12_15_{kind}.pt"))


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_clips_are_counted_in_every_kind_of_file(tmp_path, extension):
    if ".h5" in extension or ".hdf5" in extension:
        pytest.importorskip("h5py")
    save(tmp_path / f"a{extension}", X_TC)
    assert count_clips(FeatureFile(tmp_path / f"a{extension}")) == 5


def test_a_header_suffices_to_count_the_clips(tmp_path):
    """And a file that ends early is refused for what it is."""
    np.save(tmp_path / "a.npy", np.full((7, 4), np.nan))
    assert count_clips(FeatureFile(tmp_path / "a.npy")) == 7
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(RunError, match="damaged"):
        count_clips(FeatureFile(tmp_path / "a.npy"))
    np.save(tmp_path / "a.npy", 1.0)
    with pytest.raises(RunError, match=r"features of shape \(\)"):
        count_clips(FeatureFile(tmp_path / "a.npy"))


def test_threads_may_read_at_once(tmp_path):
    """What torch lets its reader rebuild is a setting of the process: a thread must not take it from another."""
    for i in range(40):
        torch.save(X_TC + i, tmp_path / f"{i}.pt")
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(lambda i: load_features(tmp_path / f"{i}.pt"), list(range(40)) * 5))
    assert [array[0, 0] for array in arrays] == [i - 1 for i in range(40)] * 5
