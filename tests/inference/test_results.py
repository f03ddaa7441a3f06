"""Files of detections: written and read back, the formats of others, and one line for each way they can be broken."""

import gzip
import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdfa.errors import RunError, UsageError
from rdfa.inference.decode import Detections
from rdfa.inference.results import THUMOS14_CLASSES, read_results, write_json, write_results

NAMES = {0: "Diving", 3: "HighJump"}


def detections(rows):
    """Detections from (start, end, score, label) rows."""
    table = np.array(rows, float).reshape(-1, 4)
    return Detections(table[:, :2], table[:, 2], table[:, 3].astype(np.int64))


def rows_of(result):
    columns = (np.asarray(result.segments_N2), np.asarray(result.scores_N), np.asarray(result.labels_N))
    return [(*segment, score, label) for segment, score, label in zip(*(c.tolist() for c in columns))]


@pytest.mark.parametrize("name", ["p.json", "p.json.gz", "new/folder/p.json"])
def test_what_is_written_is_read(tmp_path, name):
    given_rows = {"a": [(0.1, 2.5, 0.75, 3), (1.0, 1.5, 1e-9, 0)], "none": [], "ä": [(0.0, 1.0, 0.5, 0)]}
    write_results(tmp_path / name, {i: detections(r) for i, r in given_rows.items()}, NAMES, "class scores x.json")
    read, names = read_results(tmp_path / name, NAMES)
    assert {i: rows_of(d) for i, d in read.items()} == given_rows
    assert list(read) == list(given_rows)
    assert names == NAMES


def test_the_file_is_in_the_activitynet_format(tmp_path):
    write_results(tmp_path / "p.json", {"a": detections([(1, 2, 0.5, 3)])}, NAMES)
    assert json.loads((tmp_path / "p.json").read_text()) == {
        "version": "VERSION 1.3",
        "results": {"a": [{"label": "HighJump", "score": 0.5, "segment": [1.0, 2.0]}]},
        "external_data": {"used": False, "details": ""},
    }


NUMBER = st.floats(0, 1e4, allow_subnormal=False)


@given(st.dictionaries(st.text(max_size=5), st.lists(st.tuples(NUMBER, NUMBER, NUMBER, st.sampled_from([0, 3])))))
def test_every_number_survives(tmp_path_factory, given_rows):
    path = tmp_path_factory.getbasetemp() / "survives.json"
    write_results(path, {i: detections(r) for i, r in given_rows.items()}, NAMES)
    assert {i: rows_of(d) for i, d in read_results(path, NAMES)[0].items()} == given_rows


@pytest.mark.parametrize("row", [(0, 1, np.nan, 0), (np.inf, 1, 0.5, 0)])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, row):
    with pytest.raises(RunError, match="video a: a detection is not finite"):
        write_results(tmp_path / "p.json", {"a": detections([row])}, NAMES)
    assert not list(tmp_path.iterdir())


def test_a_class_without_name_is_not_written(tmp_path):
    with pytest.raises(RunError, match="video a: class 1 has no name"):
        write_results(tmp_path / "p.json", {"a": detections([(0, 1, 0.5, 1)])}, NAMES)


def test_a_file_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space left"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def test_others_may_read_the_file(tmp_path):
    write_json(tmp_path / "p.json", {})
    (tmp_path / "q.json").write_text("")
    assert stat.S_IMODE((tmp_path / "p.json").stat().st_mode) == stat.S_IMODE((tmp_path / "q.json").stat().st_mode)


def read(tmp_path, content, name="p.json"):
    data = (
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    (tmp_path / name).write_bytes(data)
    return read_results(tmp_path / name, NAMES)


def test_text_format_has_the_official_class_numbers(tmp_path):
    text = "v1 1.5 2.5 40 0.9\nv2\t0\t1\t26\t0.8\n\nv1 3 4 8 0.7\n"
    for name, data in (("p.txt", text), ("p", gzip.compress(text.encode()))):
        found, names = read(tmp_path, data, name)
        assert rows_of(found["v1"]) == [(1.5, 2.5, 0.9, 3), (3.0, 4.0, 0.7, -1)]
        assert rows_of(found["v2"]) == [(0.0, 1.0, 0.8, 0)]
        assert names == {**NAMES, -1: "THUMOS14 class 8"}
    assert len(THUMOS14_CLASSES) == len(set(THUMOS14_CLASSES.values())) == 20


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        ({"label": "HighJump"}, 3),
        ({"label": 3}, 3),
        ({"label": 3.0}, 3),
        ({"label": "3"}, 3),
        ({"label_id": 0}, 0),
        ({"label": 9}, 9),
        ({"label": "9"}, -1),
        ({"label": "Yoga"}, -1),
    ],
)
def test_labels_are_names_or_ids(tmp_path, entry, label):
    content = {"results": {"a": [{**entry, "score": "0.5", "segment": ["0", 1]}]}}
    found, names = read(tmp_path, content)
    assert rows_of(found["a"]) == [(0.0, 1.0, 0.5, label)]
    assert label in names and NAMES.items() <= names.items()


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for text in (json.dumps({"results": {"v1": [GOOD]}}), "v1 0 1 26 0.5"):
        assert rows_of(read(tmp_path, b"\xef\xbb\xbf" + text.encode())[0]["v1"]) == [(0, 1, 0.5, 0)]


def test_the_mapping_may_stand_alone_and_columns_are_understood(tmp_path):
    assert rows_of(read(tmp_path, {"a": [{"label": "Diving", "score": 1, "segment": [0, 1]}]})[0]["a"]) == [
        (0, 1, 1, 0)
    ]
    columns = {
        "video-id": ["a", "b", "a"],
        "t-start": [0, 1, 2],
        "t-end": [3, 4, 5],
        "label": [0, 3, 3],
        "score": [1, 1, 0],
    }
    found, _ = read(tmp_path, columns)
    assert rows_of(found["a"]) == [(0, 3, 1, 0), (2, 5, 0, 3)]
    assert rows_of(found["b"]) == [(1, 4, 1, 3)]


GOOD = {"label": "Diving", "score": 0.5, "segment": [0, 1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"results": {"a": [GOOD, {**GOOD, "score": float("nan")}]}}, "video 'a', entry 1: .*finite"),
        ({"results": {"a": [{**GOOD, "segment": [0, float("inf")]}]}}, "video 'a', entry 0: .*finite"),
        ({"results": {"a": [{**GOOD, "segment": [0]}]}}, "entry 0: not enough values"),
        ({"results": {"a": [{**GOOD, "segment": 1}]}}, "entry 0"),
        ({"results": {"a": [{**GOOD, "score": "high"}]}}, "could not convert string to float: 'high'"),
        ({"results": {"a": [{**GOOD, "label": None}]}}, "entry 0"),
        ({"results": {"a": [{**GOOD, "label": 1.5}]}}, "neither a name nor an id"),
        ({"results": {"a": [{**GOOD, "label": True}]}}, "neither a name nor an id"),
        ({"results": {"a": [{**GOOD, "label": float("inf")}]}}, "entry 0: cannot convert float infinity"),
        ({"results": {"a": [{**GOOD, "label": 10**30}]}}, "entry 0: .*too large"),
        ({"results": {"a": [{**GOOD, "score": 10**400}]}}, "entry 0: int too large"),
        ({"results": {"a": [{"label": "Diving", "segment": [0, 1]}]}}, "'score' is missing"),
        ({"results": {"a": [{"score": 1, "segment": [0, 1]}]}}, "'label_id' is missing"),
        ({"results": {"a": [7]}}, "entry 0"),
        ({"results": {"a": {}}}, "no results found"),
        ({"results": [1]}, "no results found"),
        ([], "no results found"),
        ({"video-id": ["a"], "t-start": [], "t-end": [1], "label": [0], "score": [1]}, "lists of equal length"),
        ('{"results": {"a"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("v1 1 2 40\n", "line 1: 4 fields"),
        ("v1 1 2 40 0.5\nv1 1 x 40 0.5\n", "line 2: could not convert"),
        (gzip.compress(b'{"results": {}}', mtime=0)[:-9], "damaged"),
        (b"\xff\xfe\x00", "damaged or no text"),
        (b" \n", "is empty: whatever should have written it"),
    ],
)
def test_damaged_files_give_one_line_with_file_and_entry(tmp_path, content, message):
    with pytest.raises(RunError, match=message) as caught:
        read(tmp_path, content)
    assert "p.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_a_wrong_invocation(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*nowhere\.json"):
        read_results(tmp_path / "nowhere.json", NAMES)
