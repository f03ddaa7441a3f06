"""Fusion with class scores: the published outputs, softmax where the published code raised, and the files."""

import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from rdfa.errors import RunError, UsageError
from rdfa.inference.decode import Detections
from rdfa.inference.fusion import ClassScores, fuse

CASES = json.loads((Path(__file__).parent.parent / "golden" / "postprocess_fusion.json").read_text())
NAMES = {i: f"c{i}" for i in range(6)}
RDFA_DATA = os.environ.get("RDFA_DATA")


def by_video(columns):
    """Video id -> Detections, in order of first appearance."""
    ids = np.array(columns["video-id"])
    segments = np.array([columns["t-start"], columns["t-end"]]).T
    scores, labels = np.array(columns["score"]), np.array(columns["label"])
    return {
        i: Detections(segments[ids == i], scores[ids == i], labels[ids == i])
        for i in dict.fromkeys(columns["video-id"])
    }


def score_file(tmp_path, content, name="scores.json"):
    (tmp_path / name).write_text(json.dumps(content))
    return ClassScores(tmp_path / name, NAMES, len(NAMES))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['kind']}-top{c['topk']}")
def test_equals_the_published_outputs(case, tmp_path):
    scores = score_file(tmp_path, case["ext_scores"])
    fused = {i: fuse(d, scores[i], case["topk"], case["num_pred"]) for i, d in by_video(case["input"]).items()}
    if "error" in case:
        assert "softmax" in case["error"]
        expected = softmax_by_hand(case)
    else:
        expected = by_video(case["output"])
    assert fused.keys() == expected.keys()
    for video_id, result in fused.items():
        np.testing.assert_allclose(result.segments_N2, expected[video_id].segments_N2, rtol=1e-12)
        np.testing.assert_allclose(result.scores_N, expected[video_id].scores_N, rtol=1e-12)
        assert result.labels_N.tolist() == expected[video_id].labels_N.tolist()


def softmax_by_hand(case):
    """What the published code meant: its formula on softmaxed scores."""
    result = {}
    for video_id, d in by_video(case["input"]).items():
        exponentials = [np.exp(s) for s in case["ext_scores"][video_id]]
        probabilities = [e / sum(exponentials) for e in exponentials]
        best = sorted(range(len(probabilities)), key=lambda c: -probabilities[c])[: case["topk"]]
        order = sorted(range(len(d.scores_N)), key=lambda n: -d.scores_N[n])
        rows = [(c, n) for c in best for n in order]
        result[video_id] = Detections(
            d.segments_N2[[n for _, n in rows]],
            np.array([np.sqrt(probabilities[c] * d.scores_N[n]) for c, n in rows]),
            np.array([c for c, _ in rows]),
        )
    return result


ONE = Detections(np.array([[0.0, 1.0]]), np.array([0.25]), np.array([5]))


def test_scores_of_one_and_zero_are_probabilities_not_logits():
    result = fuse(ONE, np.array([0.0, 1.0, 0.0]))
    assert (result.scores_N.tolist(), result.labels_N.tolist()) == ([0.5], [1])


def test_views_are_averaged():
    assert fuse(ONE, np.array([[0.2, 0.0], [0.6, 0.0]]), topk=1).scores_N.tolist() == [
        pytest.approx((0.4 * 0.25) ** 0.5)
    ]


def test_large_logits_do_not_overflow():
    result = fuse(ONE, np.array([1000.0, 999.0]))
    assert result.scores_N.tolist() == pytest.approx([(0.25 / (1 + np.exp(-1))) ** 0.5, (0.25 / (1 + np.e)) ** 0.5])


def test_no_detections_stay_none():
    nothing = Detections(np.empty((0, 2)), np.empty(0), np.empty(0, np.int64))
    result = fuse(nothing, np.array([0.5, 0.5]))
    assert result.segments_N2.shape == (0, 2) and result.labels_N.dtype == np.int64 and len(result.scores_N) == 0


@pytest.mark.parametrize("scores", [[], [0.5, np.nan], [[[0.5]]], 0.5])
def test_unusable_scores_are_refused(scores):
    with pytest.raises(ValueError, match="one per class"):
        fuse(ONE, np.array(scores))


def test_best_classes_by_name_and_ids_with_or_without_prefix(tmp_path):
    scores = score_file(
        tmp_path,
        {
            "results": {
                "v_a": {"class": "c2", "score": 0.9},
                "b": [{"label": "c5", "score": 0.7}, {"label": "c0", "score": 0.1}],
            }
        },
    )
    assert scores["a"].tolist() == scores["v_a"].tolist() == [0, 0, 0.9, 0, 0, 0]
    assert scores["v_b"].tolist() == [0.1, 0, 0, 0, 0, 0.7]
    assert fuse(ONE, scores["a"]).labels_N.tolist() == [2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.1, 0.2], r"video a: scores of shape \[2\]; expected 6"),
        ([0.1] * 5 + [float("nan")], "finite"),
        ({"label": "c9", "score": 1}, "'c9' is no field"),
        ({"label": "c1"}, "'score' is no field"),
        (["x"] * 6, "could not convert"),
        ([[0.1, 0.2], [0.1]], "video a"),
        (None, "video a"),
    ],
)
def test_malformed_scores_name_file_and_video(tmp_path, value, message):
    with pytest.raises(RunError, match=message) as caught:
        score_file(tmp_path, {"a": value})["a"]
    assert "scores.json" in str(caught.value)


def test_missing_videos_and_files(tmp_path):
    with pytest.raises(RunError, match="no class scores for video b"):
        score_file(tmp_path, {"a": [0.1] * 6})["b"]
    with pytest.raises(RunError, match="no class scores found"):
        score_file(tmp_path, [1, 2])
    for name in ("nowhere.json", "nowhere.pkl"):
        with pytest.raises(UsageError, match="cannot read"):
            ClassScores(tmp_path / name, NAMES, 6)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_are_read(tmp_path, protocol):
    array = np.arange(6, dtype=np.float32) / 8
    (tmp_path / "s.pkl").write_bytes(pickle.dumps({"a": array}, protocol))
    if protocol == 2:  # writes bytes through a codec, which is refused like any other function
        with pytest.raises(RunError, match="_codecs"):
            ClassScores(tmp_path / "s.pkl", NAMES, 6)
    else:
        assert ClassScores(tmp_path / "s.pkl", NAMES, 6)["a"].tolist() == array.tolist()


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_that_run_code_are_refused_unrun(tmp_path):
    (tmp_path / "s.pkl").write_bytes(pickle.dumps({"a": Attack(tmp_path / "owned")}))
    with pytest.raises(RunError, match=r"mkdir, which could run code.*JSON"):
        ClassScores(tmp_path / "s.pkl", NAMES, 6)
    assert not (tmp_path / "owned").exists()
    (tmp_path / "s.pkl").write_bytes(pickle.dumps({"a": np.zeros(6)})[:-20])
    with pytest.raises(RunError, match=r"s\.pkl"):
        ClassScores(tmp_path / "s.pkl", NAMES, 6)


@pytest.mark.skipif(not RDFA_DATA, reason="needs RDFA_DATA")
def test_real_score_files():
    thumos = ClassScores(Path(RDFA_DATA, "thumos14/thumos14_cls_scores.pkl"), {}, 20)
    assert thumos["video_test_0000004"].shape == (20,)
    with gzip.open(Path(RDFA_DATA, "hacs/hacs_val_top3_cls_scores.json.gz")) as file:
        labels = {entry["label"] for entries in json.load(file)["results"].values() for entry in entries}
    hacs = ClassScores(
        Path(RDFA_DATA, "hacs/hacs_val_top3_cls_scores.json.gz"), dict(enumerate(sorted(labels))), len(labels)
    )
    assert np.count_nonzero(hacs["v_Fv0MeIzhe5A"]) == 3
    names = {i: name for i, name in enumerate(sorted({"Blow-drying hair", "Beer pong"}))}
    anet = ClassScores(Path(RDFA_DATA, "activitynet/stale_best_score.json.gz"), names, 2)
    assert anet["wONwHYy59Tc"].max() == pytest.approx(0.8824086659332094)
