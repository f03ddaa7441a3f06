"""Feature files: the kinds that are read, how they are found, and every way to be unusable."""

import gzip
import os
import pickle

import numpy as np
import pytest
import torch

from rdfa.data.features import expected_name, find_feature_file, load_features
from rdfa.data.settings import DatasetSettings
from rdfa.errors import RunError
from tests.data.factory import real, real_data

X_TC = np.arange(20, dtype=np.float64).reshape(5, 4) / 8 - 1


def save(path, value):
    if path.suffix == ".pt":
        torch.save(value, path)
    elif path.suffix == ".gz":
        np.save(path.with_suffix(""), value)
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    else:
        np.save(path, value)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", ">f4"])
@pytest.mark.parametrize("name", ["x.npy", "x.npy.gz", "x.pt"])
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
        ("x.pt", {"features": torch.zeros(5, 4)}, r"holds a dict: expected one tensor or array \(clips, channels\)"),
        ("x.pt", torch.zeros(5, 4).to_sparse(), "holds a Tensor: expected one tensor or array"),
    ],
)
def test_unusable_values(tmp_path, name, value, message):
    with pytest.raises(RunError, match=rf"{name}: .*{message}") as error:
        load_features(save(tmp_path / name, value), dimension=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.npy", "x.npy.gz", "x.pt"])
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
    messages = {
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
    (tmp_path / "x.h5").touch()
    with pytest.raises(RunError, match=r"x\.h5: unknown kind of feature file: expected \.npy, \.pt, \.npy\.gz"):
        load_features(tmp_path / "x.h5")


def settings(folder, prefix="", kind="", ext=""):
    return DatasetSettings(feature_dir=str(folder), feature_prefix=prefix, feature_type=kind, feature_ext=ext)


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
    assert find_feature_file(settings(tmp_path, *parts), video_id) is None
    (tmp_path / file).touch()
    assert find_feature_file(settings(tmp_path, *parts), video_id) == tmp_path / file


def test_exact_names_come_first(tmp_path):
    for name in ("a.pt", "v_a.npy", "a.npy"):
        (tmp_path / name).touch()
        assert find_feature_file(settings(tmp_path), "a").name != "v_a.npy"
    assert find_feature_file(settings(tmp_path), "a").name == "a.npy"
    assert find_feature_file(settings(tmp_path, ext=".pt"), "a").name == "a.pt"
    assert find_feature_file(settings(tmp_path), "b") is None


def test_expected_names():
    assert expected_name(settings(".", "p_", "_t"), "a") == "p_a_t{.npy,.pt,.npy.gz}"
    assert expected_name(settings(".", "p_", "_t", ".pt"), "a") == "p_a_t.pt"


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
