"""Annotation files: every layout that is read, and every one that is refused, with what to do about it."""

import gzip
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdfa.data.annotations import load_annotations, spellings
from rdfa.errors import RunError, UsageError
from tests.data.factory import real, real_data, video, write_annotations


def load(tmp_path, content, name="a.json"):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return load_annotations(tmp_path / name)


def test_actionformer_layout(tmp_path):
    clips = video(annotations=[([0.5, 2], "B", 1), ([1, 1], "A", 0), ([0.5, 2], "B", 1)], fps=29.97)
    annotations = load(tmp_path, {"version": "x", "database": {"b": clips, "a": video("test")}})
    assert list(annotations.videos) == ["b", "a"]
    assert annotations.class_names == {0: "A", 1: "B"}
    loaded = annotations.videos["b"]
    assert (loaded.id, loaded.subset, loaded.duration, loaded.fps) == ("b", "Validation", 20.0, 29.97)
    assert loaded.segments_N2.dtype == np.float64 and loaded.labels_N.dtype == np.int64
    # Repeated and empty segments stay: what counts is the evaluation's business.
    assert loaded.segments_N2.tolist() == [[0.5, 2.0], [1.0, 1.0], [0.5, 2.0]]
    assert loaded.labels_N.tolist() == [1, 0, 1]
    assert [v.id for v in annotations.subset("TEST")] == ["a"]
    assert annotations.subset("training") == []


@pytest.mark.parametrize(
    "wrap",
    [lambda v: {"database": v}, lambda v: {"GT": v}, lambda v: {"version": "1", "videos": v}, lambda v: v],
    ids=["database", "GT", "any key", "top"],
)
@pytest.mark.parametrize("number", [1, 2])
def test_where_the_videos_stand(tmp_path, wrap, number):
    videos = {f"v{i}": video() for i in range(number)}
    assert list(load(tmp_path, wrap(videos)).videos) == list(videos)


def test_gzip_by_content_not_by_name(tmp_path):
    raw = json.dumps({"database": {"a": video()}}).encode()
    for name in ("a.json.gz", "a.json"):
        (tmp_path / name).write_bytes(gzip.compress(raw))
        assert list(load_annotations(tmp_path / name).videos) == ["a"]


def test_numbers_as_strings(tmp_path):
    loaded = load(tmp_path, {"a": video(annotations=[(["1.5", "2"], "A", "7")], duration="92.166667", fps="25")})
    clip = loaded.videos["a"]
    assert (clip.duration, clip.fps, clip.segments_N2.tolist()) == (92.166667, 25.0, [[1.5, 2.0]])
    assert loaded.class_names == {7: "A"} and clip.labels_N.tolist() == [7]


@pytest.mark.parametrize("missing", [{}, {"fps": None, "duration": None}, {"fps": "", "duration": ""}], ids=str)
def test_unknown_stays_unknown(tmp_path, missing):
    clip = load(tmp_path, {"a": {"subset": "Test", "annotations": []} | missing}).videos["a"]
    assert clip.fps is None and clip.duration is None
    assert clip.segments_N2.shape == (0, 2) and clip.labels_N.shape == (0,)


def test_frame_rate_from_frames(tmp_path):
    loaded = load(tmp_path, {"a": {"subset": "t", "duration": 8, "frame": 200}, "b": {"subset": "t", "frame": 200}})
    assert loaded.videos["a"].fps == 25.0 and loaded.videos["b"].fps is None
    assert load(tmp_path, {"a": video(frame=1)}).videos["a"].fps == 30.0  # a given rate has precedence


def test_other_names_of_the_same_fields(tmp_path):
    bmn = {"duration_second": 10.0, "duration_frame": 250, "annotations": [{"segment": [1, 2], "label": "A"}]}
    fields = {"split": "TRAIN", "num_frames": "300", "duration": "10", "annotations": []}
    loaded = load(tmp_path, {"a": bmn, "b": fields})
    assert [(v.subset, v.duration, v.fps) for v in loaded.videos.values()] == [("", 10.0, 25.0), ("TRAIN", 10.0, 30.0)]


def test_clips_of_a_longer_video(tmp_path):
    clip = {"parent_start_sec": "100.5", "parent_end_sec": 140, "v_duration": 900.0, "subset": "val", "fps": 30}
    clip["annotations"] = [{"start_time": 1.5, "end_time": "3", "label": "A"}]
    loaded = load(tmp_path, {"x": clip, "y": clip | {"parent_end_sec": None}})
    assert [v.duration for v in loaded.videos.values()] == [39.5, None]
    assert loaded.videos["x"].segments_N2.tolist() == [[1.5, 3.0]]


SPELLINGS = (
    ("training", "Train", "TRAINING", "train_", "trn"),
    ("validation", "val", "Valid", "VALIDATION"),
    ("test", "Testing", "TEST"),
    ("test-dev", "TestDev"),
    ("",),
)


@pytest.mark.parametrize("spellings_of_one", SPELLINGS, ids=lambda names: names[0])
def test_any_spelling_of_a_subset(tmp_path, spellings_of_one):
    loaded = load(tmp_path, {name or "none": video(name) for names in SPELLINGS for name in names})
    for name in spellings_of_one:
        assert [v.subset for v in loaded.subset(name)] == list(spellings_of_one)


def test_reversed_segments_are_kept_and_said_so(tmp_path, capsys):
    rows = [([3, 2], "A", 0), ([1, 1], "A", 0), ([1, 2], "A", 0), ([9, 8.5], "A", 0)]
    loaded = load(tmp_path, {"a": video(annotations=[]), "b": video(annotations=rows)})
    assert loaded.videos["b"].segments_N2.tolist() == [[3, 2], [1, 1], [1, 2], [9, 8.5]]
    warned = capsys.readouterr().err
    assert "warning" in warned and "2 segments end before they start, the first [3.0, 2.0] of video 'b'" in warned
    assert warned.count("\n") == 1


def test_classes_are_numbered_by_sorted_name(tmp_path):
    clips = {"a": video(annotations=[([0, 1], "run", None), ([0, 1], "jump", None)])}
    loaded = load(tmp_path, clips | {"b": video(annotations=[([0, 1], "Run", None)])})
    assert loaded.class_names == {0: "Run", 1: "jump", 2: "run"}
    assert loaded.videos["a"].labels_N.tolist() == [2, 1]


def test_label_ids_need_not_be_contiguous_nor_named(tmp_path):
    loaded = load(tmp_path, {"a": video(annotations=[([0, 1], None, 9), ([0, 1], "A", 3), ([0, 1], "A", None)])})
    assert loaded.class_names == {3: "A", 9: "9"}
    assert loaded.videos["a"].labels_N.tolist() == [9, 3, 3]


def test_two_names_of_one_id_are_one_class_and_said_so(tmp_path, capsys):
    loaded = load(tmp_path, {"a": video(annotations=[([0, 1], "pull up", 0), ([0, 1], "pushdown", 0)])})
    assert loaded.class_names == {0: "pull up"} and loaded.videos["a"].labels_N.tolist() == [0, 0]
    assert "label_id 0 stands for 'pull up' and 'pushdown': they are one class" in capsys.readouterr().err


def bad_segment(segment):
    return {"vid": video(annotations=[([0, 1], "A", 0), (segment, "A", 0)])}


SEGMENT = r"a.json: video 'vid': annotation 1: segment = .*: expected \[start, end\] in seconds"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a.json is not valid JSON \(Expecting value.*\): copy it again, or give another file"),
        ('{"database": {"vid', "a.json is not valid JSON"),
        ("[" * 100_000, "a.json is not valid JSON"),
        ("[]", "a.json: no videos found: expected"),
        ({}, "no videos found"),
        ({"database": {}}, "no videos found"),
        ({"a": 25.0}, "no videos found"),
        ({"results": {"a": [{"label": "A", "score": 1}]}}, "no videos found"),
        ({"a": video(), "vid": 3}, "a.json: video 'vid': 3 has neither 'annotations' nor 'subset'"),
        ({"vid": {"annotations": {"a": 1}}}, "a.json: video 'vid': 'annotations' is .*: expected a list"),
        (bad_segment([1]), SEGMENT),
        (bad_segment([1, 2, 3]), SEGMENT),
        (bad_segment({"start": 1, "end": 2}), SEGMENT),
        (bad_segment([1, "x"]), SEGMENT),
        (bad_segment([1, None]), SEGMENT),
        (bad_segment([True, 2]), SEGMENT),
        (bad_segment([0, float("nan")]), SEGMENT),
        (bad_segment([0, float("inf")]), SEGMENT),
        (bad_segment(None), SEGMENT),
        ({"vid": {"annotations": ["x"]}}, "video 'vid': annotation 0: segment = None: expected"),
        ({"vid": video(fps=0)}, "video 'vid': fps = 0: expected a positive number .*, or leave it out"),
        ({"vid": video(duration=1e300)}, "video 'vid': duration = 1e.300: expected a positive number"),
        ({"vid": video(fps=1e-300)}, "video 'vid': fps = 1e-300: expected a positive number"),
        ({"vid": video(duration="-3")}, "video 'vid': duration = '-3': expected a positive number"),
        ({"vid": video(duration="long")}, "video 'vid': duration = 'long': expected a positive number"),
        ({"vid": video(annotations=[([0, 1], None, None)])}, "annotation 0 names no class: give it a 'label'"),
        ({"vid": video(annotations=[([0, 1], "A", -1)])}, "label_id = -1: expected an integer from 0 up, or leave"),
        ({"vid": video(annotations=[([0, 1], "A", 1e30)])}, r"label_id = 1e\+30: expected an integer from 0 up"),
        ({"vid": video(annotations=[([0, 1], "A", 1.5)])}, r"label_id = 1\.5: expected an integer from 0 up"),
        (
            {"vid": video(annotations=[([0, 1], "A", 1), ([0, 1], "A", 2)])},
            "video 'vid': class 'A' has label_id 2 here and 1 before: keep one",
        ),
        (
            {"a": video(), "vid": video(annotations=[([0, 1], "B", None)])},
            "video 'vid': class 'B' has no label_id, others have: give all classes one, or none",
        ),
    ],
)
def test_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(RunError, match=message) as error:
        load(tmp_path, content)
    assert "\n" not in str(error.value)


def test_truncated_gzip(tmp_path):
    raw = gzip.compress(json.dumps({"database": {f"v{i}": video() for i in range(50)}}).encode())
    for size in (len(raw) - 9, len(raw) // 2, 12):
        (tmp_path / "a.json.gz").write_bytes(raw[:size])
        with pytest.raises(RunError, match=r"a\.json\.gz: truncated or damaged gzip file .*: fetch it again"):
            load_annotations(tmp_path / "a.json.gz")


@pytest.mark.parametrize("name", ["", "none.json"])
def test_missing_file_is_a_wrong_invocation(tmp_path, name):
    with pytest.raises(UsageError, match=r"cannot read .*check Dataset\.annotation_file, or the path given"):
        load_annotations(tmp_path / name)
    with pytest.raises(UsageError, match="no annotation file is given: choose a --gin_file, or set"):
        load_annotations("")


@given(st.text())
def test_spellings_reach_each_other(name):
    assert spellings(name)[0] == name
    assert name in spellings("v_" + name)
    assert "v_" + name in spellings(name)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e5), st.integers(0, 5)), max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_round_trip(tmp_path_factory, clips):
    path = tmp_path_factory.mktemp("round") / "a.json"
    videos = {
        name: video(annotations=[(sorted((a, b)), f"c{label}", label) for a, b, label in rows])
        for name, rows in clips.items()
    }
    loaded = load_annotations(write_annotations(path, **videos))
    assert list(loaded.videos) == list(clips)
    for name, rows in clips.items():
        assert loaded.videos[name].segments_N2.tolist() == [sorted(row[:2]) for row in rows]
        assert loaded.videos[name].labels_N.tolist() == [row[2] for row in rows]


REAL = {
    "thumos14/thumos14.json.gz": (412, 6365, 20),
    "thumos14/thumos_14_anno.opentad.json.gz": (411, 6328, 20),
    "activitynet/activity_net.v1-3.reconstructed.json.gz": (19994, 23064, 200),
    "activitynet/activity_net.v1-2.min.json.gz": (9682, 10733, 100),
    "gym_i3d/annotations.json": (30, 30, 15),
    "gym_i3d/gt.json": (3, 6, 3),
    "hacs/HACS_segments_readme_example.json": (1, 2, 1),
    "mmaction2_eval_localization/gt.json": (2, 4, 2),
    "ego4d/clip_annotations_split.json.gz": (2527, 22577, 110),
}


@real_data
@pytest.mark.parametrize("name", REAL)
def test_real_annotations(name):
    loaded = load_annotations(real(name))
    segments = sum(len(clip.labels_N) for clip in loaded.videos.values())
    assert (len(loaded.videos), segments, len(loaded.class_names)) == REAL[name]


@real_data
def test_real_thumos14():
    loaded = load_annotations(real("thumos14/thumos14.json.gz"))
    for subset, videos, segments in (("validation", 200, 3007), ("test", 212, 3358)):
        clips = loaded.subset(subset)
        assert (len(clips), sum(len(clip.labels_N) for clip in clips)) == (videos, segments)
    assert loaded.summary("Validation") == "Validation: 200 videos with 3,007 actions"
    assert all(clip.fps and clip.duration for clip in loaded.videos.values())
    assert loaded.class_names[5] == "CricketBowling"


@real_data
def test_real_frame_rates():
    rates = [clip.fps for clip in load_annotations(real("thumos14/thumos_14_anno.opentad.json.gz")).videos.values()]
    assert min(rates) > 9 and max(rates) < 61  # from the number of frames
    assert load_annotations(real("hacs/HACS_segments_readme_example.json")).videos["--0edUL8zmA"].duration == 92.166667
    anet = load_annotations(real("activitynet/activity_net.v1-3.reconstructed.json.gz"))
    assert all(clip.fps is None for clip in anet.videos.values())


@real_data
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ego4d/moment_classes_idx.json", "no videos found"),
        ("ego4d/ego4d_label_map.txt", "not valid JSON"),
        ("activitynet/action_name.csv", "not valid JSON"),
        ("activitynet/sample_detection_prediction.json.gz", "no videos found"),
        ("activitynet/video_fps.json.gz", "no videos found"),
        ("activitynet/stale_best_score.json.gz", "no videos found"),
        ("activitynet/action_label_mapping.json", "no videos found"),
        ("hacs/hacs_val_top3_cls_scores.json.gz", "no videos found"),
        ("epic_kitchens/EPIC_100_validation.csv.gz", "not valid JSON"),
        ("thumos14/predictions_a2net_af38.txt.gz", "not valid JSON"),
        ("thumos14/thumos14_cls_scores.pkl", "not valid JSON"),
    ],
)
def test_real_files_of_another_kind(name, reason):
    with pytest.raises(RunError, match=re.escape(reason)):
        load_annotations(real(name))
