"""The command finds what is wrong with a data set, counts it, and says whether training would fail."""

import json
import re

import numpy as np
import pytest

from rdfa import cli
from rdfa.data import inspect
from rdfa.data.checks import suggest_names
from tests.data.factory import real, real_data, video, write_annotations

CLIP = 4 / 30  # seconds from one clip to the next


def seconds(clips: int) -> float:
    """The duration of a video of so many clips, by the defaults."""
    return ((clips - 1) * 4 + 16) / 30


def good(subset="Validation", clips=50, **fields) -> dict:
    return video(subset, duration=seconds(clips), annotations=[([0.5, 2.0], "A", 0), ([3.0, 4.0], "B", 1)]) | fields


@pytest.fixture
def inspected(tmp_path, capsys):
    """Inspects videos, whose features are written unless given: (exit code, lines of a level, everything printed)."""

    def run(videos, features=None, flags=(), folders=("features",)):
        annotations = write_annotations(tmp_path / "a.json", **videos)
        for folder in folders:
            (tmp_path / folder).mkdir(exist_ok=True)
        for name, array in (features if features is not None else dict.fromkeys(videos, np.ones((50, 4)))).items():
            np.save(tmp_path / folders[0] / f"{name}.npy", np.asarray(array))
        argv = [
            "--annotations",
            str(annotations),
            "--features",
            *(str(tmp_path / folder) for folder in folders),
            *flags,
        ]
        code = cli.run(inspect.main, argv)
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        return code, {k: [x for x in lines if x.startswith(k)] for k in ("note", "warning", "error")}, printed

    return run


def test_a_data_set_without_fault(inspected):
    features = {name: np.ones((50, 4), np.float32) for name in "abc"}
    code, found, printed = inspected({"a": good(), "b": good(), "c": good("Test")}, features)
    assert code == 0 and not any(found.values()) and not printed.err
    for text in (
        "videos: 3, classes: 2",
        "'Validation'",
        "training would run; 0 warnings",
        "3 .npy; 4 channels; 50 to 50",
    ):
        assert text in printed.out
    assert "training on Validation: 2 videos with 4 actions; evaluation on Test: 1 videos with 2 actions" in printed.out


SEGMENT = ([0.5, 2.0], "A", 0)

TRAPS = {
    "spellings": (
        {"a": good("Training"), "b": good("TRAIN")},
        "warning: subset names 'TRAIN', 'Training' are spellings of one",
    ),
    "prefix": ({"v_a": good(), "b": good()}, "warning: 1 ids begin with 'v_' and 1 do not"),
    "twice": ({"v_a": good(), "a": good()}, "warning: 1 videos are there with and without 'v_': a"),
    "text": ({"a": good(duration=str(seconds(50)))}, "note: 1 numbers of 'duration' are given as text"),
    "label ids as text": (
        {"a": good(annotations=[{"segment": [0, 1], "label": "A", "label_id": "0"}])},
        "note: 1 numbers of 'label_id' are given as text",
    ),
    "no duration": ({"a": good(duration=None), "b": good()}, "warning: 1 of 2 videos have no duration: a"),
    "empty": (
        {"a": video(duration=seconds(50), annotations=[SEGMENT, ([1.0, 1.0], "A", 0)])},
        "warning: 1 segments have no length: a [1, 1]",
    ),
    "reversed": (
        {"a": video(duration=seconds(50), annotations=[SEGMENT, ([2.0, 1.0], "A", 0)])},
        "warning: 1 segments end before they start: a [2, 1]",
    ),
    "repeated": (
        {
            "a": video(
                duration=seconds(50), annotations=[SEGMENT, SEGMENT, ([0.5005, 2.0], "A", 0), ([0.5, 2.0], "B", 1)]
            )
        },
        "warning: 2 segments repeat another of their class: a [0.5, 2], a [0.5005, 2]",
    ),
    "past the end": (
        {"a": video(duration=seconds(50), annotations=[SEGMENT, ([6.0, 7.5], "A", 0), ([8.0, 9.0], "A", 0)])},
        "warning: 1 segments end after the video: a [6, 7.5]",
    ),
    "after the end": (
        {"a": video(duration=seconds(50), annotations=[SEGMENT, ([6.0, 7.5], "A", 0), ([8.0, 9.0], "A", 0)])},
        "warning: 1 segments start after the video's end: a [8, 9]",
    ),
    "before 0": (
        {"a": video(duration=seconds(50), annotations=[SEGMENT, ([-1.0, 0.5], "A", 0)])},
        "warning: 1 segments start before 0: a [-1, 0.5]",
    ),
    "empty class": (
        {"a": video(duration=seconds(50), annotations=[SEGMENT]), "b": good("Test")},
        "warning: 1 classes have no action in subset 'Validation': B",
    ),
    "gap": (
        {"a": video(duration=seconds(50), annotations=[SEGMENT, ([3, 4], "C", 4)])},
        "warning: label ids are not contiguous: 3 below 4 are unused: 1, 2, 3",
    ),
    "wide gap": (
        {"a": video(duration=seconds(50), annotations=[SEGMENT, ([3, 4], "C", 10**9)])},
        "warning: label ids are not contiguous: 999999999 below 1000000000 are unused: 1, 2, 3, ...",
    ),
    "no action": ({"a": good(), "b": good(annotations=[])}, "note: 1 videos of subset 'Validation' have no action: b"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_traps_of_annotations(inspected, name):
    videos, expected = TRAPS[name]
    code, found, _ = inspected(videos)
    assert code == 0
    assert [line for line in found[expected.partition(":")[0]] if line.startswith(expected)], found


def nan_in(*clips):
    array = np.ones((50, 4), np.float32)
    array[list(clips), 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("arrays", "code", "expected"),
    [
        ([np.ones((50, 4)), np.ones((50, 4), np.float16)], 0, "note: 1 arrays of float64: read as float32"),
        ([nan_in(3, 4, 9), nan_in(0)], 1, "error: 4 clips of 2 videos hold NaN or infinite values: a (3), b (1)"),
        ([np.full((50, 4), 1e300), nan_in()], 1, "error: 50 clips of 1 videos hold NaN or infinite values: a (50)"),
        ([np.ones((50, 4)), np.ones((50, 4)), np.ones((50, 3))], 1, "error: 1 videos have 3 channels instead of 4: c"),
        ([np.ones((1, 4)), np.ones((50, 4))], 0, "warning: 1 videos have a single clip: a"),
        ([np.ones((50, 4)), np.ones((30, 4))], 0, "warning: 1 of 2 videos have not as many clips as duration, fps and"),
        ([np.ones((25, 4)), np.ones((25, 4))], 0, ": a feat_stride of 8.5 frames would fit best"),
        (
            [np.ones((20000, 4)), np.ones((50, 4))],
            1,
            "error: 1 videos have more clips than the 13824 that the detector",
        ),
        ([np.ones((5, 4)), np.ones((50, 4))], 0, "warning: 1 segments start after the last clip: a [3, 4]"),
        ([np.ones(50), np.ones((50, 4))], 1, "error: 1 videos have features that cannot be read: "),
        ([np.ones((50, 4))], 1, "error: 1 of 2 feature files of subset 'Validation' are missing in"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_traps_of_features(inspected, arrays, code, expected):
    videos = {name: good() for name in "abc"[: max(len(arrays), 2)]}
    result, found, printed = inspected(videos, dict(zip("abc", arrays)))
    assert result == code, found
    assert any(line.startswith(expected) or line.endswith(expected) for lines in found.values() for line in lines), (
        found
    )
    assert ("error: training would fail" in printed.err) == (code == 1)


def test_lengths_within_the_conventions_pass(inspected):
    """Whether a last clip is padded, and at which end the first begins, differs from one extractor to the next."""
    features = {name: np.ones((length, 4), np.float32) for name, length in zip("abcd", (47, 50, 54, 45))}
    code, found, _ = inspected({name: good() for name in features}, features)
    assert code == 0 and not found["warning"]


@pytest.mark.parametrize(
    ("videos", "flags", "expected"),
    [
        ({"a": good(fps=None)}, [], "error: video 'a' of .* has no fps"),
        ({"a": good(annotations=[])}, [], "error: subset 'Validation' of .* has no action to train on"),
        (
            {"a": good(), "b": good("Test", annotations=[])},
            [],
            "error: no video of subset 'Test' has an action to evaluate",
        ),
        ({"a": good()}, ["--gin_param", "Dataset.test_subset = 'Tset'"], "error: no video of .* is in subset 'Tset'"),
    ],
)
def test_what_makes_training_fail(inspected, videos, flags, expected):
    code, found, _ = inspected(videos, flags=flags)
    assert code == 1

    assert any(re.match(expected, line) for line in found["error"]), found


def test_settings_decide_what_fails(inspected):
    videos = {"a": good(fps=None), "b": good()}
    features = {"a": np.ones((50, 4))}
    assert inspected(videos, features)[0] == 1
    flags = ["--gin_param", "Dataset.default_fps = 30", "--gin_param", "Dataset.skip_missing = True"]
    code, found, _ = inspected(videos, features, flags)
    assert code == 0 and "warning: 1 of 2 videos of subset 'Validation' have no features" in found["warning"]
    assert inspected(videos, features, [*flags[2:], "--gin_param", "Dataset.resize = True"])[0] == 0


def test_resized_videos_are_compared_with_each_other(inspected):
    features = {name: np.ones((length, 4), np.float32) for name, length in zip("abcd", (100, 104, 97, 60))}
    videos = {name: good(fps=None) for name in features}
    _, found, _ = inspected(videos, features, ["--gin_param", "Dataset.resize = True"])
    assert [line for line in found["warning"] if "1 of 4 videos have not as many clips per second as the other" in line]


def test_a_benchmark_is_checked_against_its_configuration(inspected, tmp_path):
    """Classes, channels and subsets are those of the gin file; class scores are looked at too."""
    videos = {"v_a": good("training", fps=None), "b": good("validation", fps=None)}
    (tmp_path / "s.json").write_text(json.dumps({"a": [0.5] * 200}))
    gin = [
        "--gin_file",
        "gin/activitynet.gin",
        "--gin_param",
        f"PostProcessing.ext_score_file = '{tmp_path / 's.json'}'",
    ]
    code, found, _ = inspected(videos, flags=gin)
    assert code == 1
    assert "warning: 2 classes have actions, 200 are expected (Dataset.num_classes)" in found["warning"]
    assert "error: 2 videos have 4 channels instead of 3200: v_a, b" in found["error"]
    assert [line for line in found["error"] if "has no class scores for 1 of 1 videos: b" in line]


def test_streams(inspected, tmp_path):
    (tmp_path / "flow").mkdir()
    np.save(tmp_path / "flow" / "a.npy", np.ones((49, 2), np.float32))
    features = {"a": np.ones((50, 4), np.float32)}
    code, _, printed = inspected({"a": good()}, features, folders=("rgb", "flow"))
    assert code == 0 and "features of 1 videos: 2 .npy; 6 channels; 49 to 49 clips" in printed.out
    np.save(tmp_path / "flow" / "a.npy", np.ones((30, 2), np.float32))
    code, found, _ = inspected({"a": good()}, features, folders=("rgb", "flow"))
    assert code == 1 and "files of one video differ in clips" in found["error"][0]


def test_files_that_are_called_otherwise(inspected):
    features = {"x-a_pool": np.ones((50, 4)), "x-b_pool": np.ones((50, 4)), "readme": np.ones((1, 1))}
    code, found, _ = inspected({"v_a": good(), "v_b": good()}, features)
    assert code == 1
    assert "note: 3 feature files belong to no video: readme.npy, x-a_pool.npy, x-b_pool.npy" in found["note"]
    hint = "Dataset.feature_prefix = 'x-', Dataset.feature_type = '_pool'"
    assert f"note: 2 videos have no features, but some files seem to be theirs: try {hint}" in found["note"]
    flags = [part for text in hint.split(", ") for part in ("--gin_param", text)]
    assert inspected({"v_a": good(), "v_b": good()}, features, flags)[0] == 0


def test_suggestions():
    assert suggest_names(["a1"], ["b.npy", "readme"]) is None
    assert suggest_names(["v_a1", "b1"], ["a1.npy"]) == "Dataset.feature_prefix = '', Dataset.feature_type = ''"
    both = ["v_a1_rgb.npy", "v_a1_flow.npy"]
    assert suggest_names(["a1"], both) == "Dataset.feature_prefix = 'v_', Dataset.feature_type = ['_rgb', '_flow']"


def test_wrong_invocations(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    for annotations, code in ((tmp_path / "none.json", 2), (tmp_path / "a.json", 1)):
        assert cli.run(inspect.main, ["--annotations", str(annotations), "--features", str(tmp_path)]) == code
    with pytest.raises(SystemExit, match="0"):
        inspect.main(["--help"])
    assert "python -m rdfa.data.inspect --gin_file" in capsys.readouterr().out


def run_real(capsys, annotations, features, *flags):
    code = cli.run(inspect.main, ["--annotations", str(real(annotations)), "--features", str(real(features)), *flags])
    return code, capsys.readouterr().out


# Every trap that the folder's README lists, in the file that holds it.
REAL_TRAPS = [
    (
        "thumos14/thumos14.json.gz",
        "thumos14/c3d_features",
        [],
        ["segments start after the video's end", "'Validation'"],
    ),
    (
        "thumos14/thumos_14_anno.opentad.json.gz",
        "thumos14/c3d_features",
        [],
        ["training on training: 200 videos", "evaluation on validation: 211 videos"],
    ),
    (
        "activitynet/activity_net.v1-3.reconstructed.json.gz",
        "features_i3d_video_features",
        ["--gin_file", "gin/activitynet.gin"],
        [
            "note: 19994 of 19994 videos have no fps",
            "warning: 12 segments have no length",
            "warning: 52 segments repeat another of their class",
            "warning: 253 segments end after the video",
            "Dataset.feature_type = ['_pwc_24_12_15_flow', '_pwc_24_12_15_rgb']",
        ],
    ),
    ("hacs/HACS_segments_readme_example.json", "hacs", [], ["1 numbers of 'duration' are given as text"]),
    ("mmaction2_eval_localization/gt.json", "hacs", [], ["note: 2 of 2 videos have no fps: v_bYUmtLBL7W4"]),
    ("ego4d/clip_annotations_split.json.gz", "ego4d", [], ["training on train: 1,517", "evaluation on val: 523"]),
    ("gym_i3d/gt.json", "gym_i3d", [], ["2 of 3 feature files", "1 arrays of float64", "label ids are not contiguous"]),
]


@real_data
@pytest.mark.parametrize(("annotations", "features", "flags", "expected"), REAL_TRAPS, ids=lambda v: str(v)[:30])
def test_real_traps(capsys, annotations, features, flags, expected):
    code, printed = run_real(capsys, annotations, features, *flags)
    assert code == 1  # none of these folders holds the features
    for text in expected:
        assert text in printed


@real_data
def test_a_real_data_set_that_trains(capsys):
    code, printed = run_real(capsys, "gym_i3d/annotations.json", "gym_i3d/i3d_features")
    assert code == 0
    for text in (
        "features of 30 videos: 30 .npy; 2048 channels; 1 to 6 clips, median 2",
        "note: 30 arrays of float64: read as float32",
        "warning: label ids are not contiguous: 5 below 19 are unused: 2, 4, 12",
        "warning: 12 videos have a single clip",
        "a feat_stride of 64.1 frames would fit best",
    ):
        assert text in printed
