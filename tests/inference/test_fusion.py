"""Fusion with class scores: the published outputs, softmax where the published code raised, and the files."""

import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from rdfa.data.annotations import load_annotations
from rdfa.errors import RunError, UsageError
from rdfa.evaluation.mean_ap import mean_average_precision
from rdfa.inference.decode import Detections
from rdfa.inference.fusion import ClassScores, fuse
from rdfa.inference.results import read_results

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


def test_views_are_averaged(tmp_path):
    scores = score_file(tmp_path, {"a": [[0.2, 0, 0, 0, 0, 0.5], [0.6, 0, 0, 0, 0, 0.5]]})["a"]
    assert scores.tolist() == pytest.approx([0.4, 0, 0, 0, 0, 0.5])


def test_one_negative_number_makes_all_videos_of_a_file_logits(tmp_path):
    """That a video has none must not change what its scores mean."""
    logits = {"a": [1, 2, 0, 0, 0, 0.5], "b": [0, -1, 0, 0, 0, 0], "c": [1000, 999, 0, 0, 0, 0]}
    scores = score_file(tmp_path, logits)
    for video_id in "ab":
        exponentials = np.exp(logits[video_id])
        np.testing.assert_allclose(scores[video_id], exponentials / exponentials.sum(), rtol=1e-12)
    np.testing.assert_allclose(scores["c"][:3], [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0], rtol=1e-12)


def test_scores_above_one_are_used_as_they_are(tmp_path):
    """As by the code they were published with: sums over two streams, in the order that they give."""
    scores = score_file(tmp_path, {"a": [0.1, 1.9, 0, 0, 0, 0], "b": [0.2, 0.4, 0, 0, 0, 0]})
    assert [scores[i].max() for i in "ab"] == [1.9, 0.4]
    assert fuse(ONE, scores["a"], topk=1).scores_N.tolist() == pytest.approx([(1.9 * 0.25) ** 0.5])


def test_no_detections_stay_none():
    nothing = Detections(np.empty((0, 2)), np.empty(0), np.empty(0, np.int64))
    result = fuse(nothing, np.array([0.5, 0.5]))
    assert result.segments_N2.shape == (0, 2) and result.labels_N.dtype == np.int64 and len(result.scores_N) == 0


@pytest.mark.parametrize("scores", [[], [0.5, np.nan], [[0.5]], 0.5, [0.5, -0.1]])
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


@pytest.mark.parametrize("key", ["class", "classes"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_names_of_the_file_give_the_order(tmp_path, key, sign):
    """CUHK, TCANet, InternVideo: a list of names beside the scores; nested once, or not."""
    names = ["c4", "c0", "unknown", "c2"]
    results = {"a": [0.4, 0.1, 0.9, sign * 0.2], "b": [[0.3, 0.5, 0.1, 0.7]]}
    scores = score_file(tmp_path, {"results": results, key: names})
    if sign > 0:
        assert scores["a"].tolist() == [0.1, 0, 0.2, 0, 0.4, 0]
        assert scores["b"].tolist() == [0.5, 0, 0.7, 0, 0.3, 0]
    else:  # softmax over the classes that the file and the annotations share
        exponentials = np.exp([0.1, -0.2, 0.4])
        np.testing.assert_allclose(scores["a"][[0, 2, 4]], exponentials / exponentials.sum(), rtol=1e-12)
        assert scores["a"][[1, 3, 5]].tolist() == [0, 0, 0]
    with pytest.raises(RunError, match=r"scores of 'x' and others, none of which is a class of the annotations"):
        score_file(tmp_path, {"results": results, key: ["x", "y", "z", "w"]})
    with pytest.raises(RunError, match=r"video c: scores of shape \[6\]; expected 4 finite numbers"):
        score_file(tmp_path, {"results": results | {"c": [0.1] * 6}, key: names})["c"]


def test_untrimmed_net_scores_of_thumos14(tmp_path):
    """Row n - 1 is test video n, column k - 1 class number k."""
    names = {5: "Shotput", 0: "HighJump", 2: "Diving"}
    array = np.zeros((1574, 101), np.float32)
    array[1557, [39, 78, 25, 0]] = [0.5, 1.5, 0.25, 9.0]
    np.save(tmp_path / "uNet_test.npy", array)
    scores = ClassScores(tmp_path / "uNet_test.npy", names, 6)
    assert scores["video_test_0001558"].tolist() == [0.5, 0, 0.25, 0, 0, 1.5]
    np.save(tmp_path / "other.npy", array[:, :20])
    with pytest.raises(RunError, match=r"array of shape \(1574, 20\); expected UntrimmedNet's \[videos, 101\]"):
        ClassScores(tmp_path / "other.npy", names, 6)
    (tmp_path / "other.npy").write_bytes(b"no array")
    with pytest.raises(RunError, match="damaged, or no array"):
        ClassScores(tmp_path / "other.npy", names, 6)


def test_names_come_from_the_file_where_none_are_known(tmp_path):
    def names(content):
        (tmp_path / "s.json").write_text(json.dumps(content))
        scores = ClassScores(tmp_path / "s.json", {}, 3)
        return scores.class_names, scores["a"].tolist()

    assert names({"results": {"a": [0.1, 0.2, 0.3]}, "class": ["z", "x", "y"]}) == (
        {0: "z", 1: "x", 2: "y"},
        [0.1, 0.2, 0.3],
    )
    best = {"a": [{"label": "z", "score": 0.5}], "b": {"class": "x", "score": 0.1}}
    assert names(best) == ({0: "x", 1: "z", 2: "2"}, [0, 0.5, 0])
    assert names({"a": [0.1, 0.2, 0.3]}) == ({0: "0", 1: "1", 2: "2"}, [0.1, 0.2, 0.3])


def test_missing_videos_are_counted_before_the_work(tmp_path):
    scores = score_file(tmp_path, {"v_a": [0.1] * 6, "b": [0.1] * 6})
    scores.require(["a", "v_b"])
    with pytest.raises(UsageError, match=r"no class scores for 2 of 3 videos: c, d: add them, .* Dataset\.exclude"):
        scores.require(["a", "c", "d"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.1, 0.2], r"video a: scores of shape \[2\]; expected 6"),
        ([0.1] * 5 + [float("nan")], "finite"),
        ({"label": "c9", "score": 1}, "'c9' is no field"),
        ({"label": "c1"}, "'score' is no field"),
        ([{"label": "c1", "score": -0.5}], "score -0.5: give scores from 0 up"),
        ([10**400] * 6, "too large"),
        ({"label": "c1", "score": 10**400}, "too large"),
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
    with pytest.raises(RunError, match="no class scores found"):
        score_file(tmp_path, {"results": {"a": [0.1] * 6}, "class": [["c1"]] * 6})
    for name in ("nowhere.json", "nowhere.pkl"):
        with pytest.raises(UsageError, match="cannot read"):
            ClassScores(tmp_path / name, NAMES, 6)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_are_read(tmp_path, protocol):
    array = np.arange(6, dtype=np.float32) / 8
    (tmp_path / "s.pkl").write_bytes(pickle.dumps({"a": array}, protocol))
    assert ClassScores(tmp_path / "s.pkl", NAMES, 6)["a"].tolist() == array.tolist()


@pytest.mark.parametrize("kind", ["json", "pkl", "npy"])
def test_compressed_files(tmp_path, kind):
    array = np.zeros((3, 101))
    array[1, 39] = 0.5
    videos = {"video_test_0000002": [0.5] + [0.0] * 5}
    np.save(tmp_path / "s.npy", array)
    (tmp_path / "s.json").write_text(json.dumps(videos))
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(videos))
    raw = gzip.compress((tmp_path / f"s.{kind}").read_bytes())
    path = tmp_path / f"s.{kind}.gz"
    path.write_bytes(raw)
    assert ClassScores(path, {0: "HighJump"}, 6)["video_test_0000002"].tolist() == [0.5, 0, 0, 0, 0, 0]
    for size in (len(raw) - 9, 5):
        path.write_bytes(raw[:size])
        with pytest.raises(RunError, match="damaged"):
            ClassScores(path, {0: "HighJump"}, 6)


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
def test_real_scores_of_thumos14_improve_a_published_detector():
    root = Path(RDFA_DATA, "thumos14")
    annotations = load_annotations(root / "thumos14.json.gz")
    videos = annotations.subset("Test")
    predictions, _ = read_results(root / "predictions_a2net_af38.txt.gz", annotations.class_names)
    scores = ClassScores(root / "thumos14_cls_scores.pkl", annotations.class_names, 20)
    scores.require(video.id for video in videos)
    assert max(scores[video.id].max() for video in videos) > 1.9  # they are not normalised
    fused = {video_id: fuse(found, scores[video_id]) for video_id, found in predictions.items()}
    own, better = (mean_average_precision(videos, p, [0.3, 0.4, 0.5, 0.6, 0.7]).average for p in (predictions, fused))
    assert better > own + 0.03  # 0.348 -> 0.386; softmax of some videos alone would leave 0.348


@pytest.mark.skipif(not RDFA_DATA, reason="needs RDFA_DATA")
def test_real_score_files_of_activitynet_and_hacs():
    annotations = load_annotations(Path(RDFA_DATA, "activitynet/activity_net.v1-3.reconstructed.json.gz"))
    anet = ClassScores(Path(RDFA_DATA, "activitynet/stale_best_score.json.gz"), annotations.class_names, 200)
    videos = annotations.subset("validation")
    anet.require(video.id for video in videos)
    assert anet["wONwHYy59Tc"].max() == pytest.approx(0.8824086659332094)
    right = [anet[video.id].argmax() in video.labels_N for video in videos]
    assert sum(right) / len(right) > 0.85
    hacs = ClassScores(Path(RDFA_DATA, "hacs/hacs_val_top3_cls_scores.json.gz"), annotations.class_names, 200)
    assert np.count_nonzero(hacs["v_Fv0MeIzhe5A"]) == 3
    unnamed = ClassScores(Path(RDFA_DATA, "hacs/hacs_val_top3_cls_scores.json.gz"), {}, 200)
    assert unnamed.class_names == annotations.class_names
