"""The page of an evaluation: whole, self-contained, and with every class, figure and curve in it."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rdfa import cli, evaluate

RDFA_DATA = os.environ.get("RDFA_DATA")
VOID = {"meta", "link", "br", "line"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.fetched, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(tmp_path, *flags):
    assert cli.run(evaluate.main, [*map(str, flags), "--report", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.fetched == ["data:,"] and "url(" not in text and "@import" not in text and "http" not in page.text
    assert not re.search(r"nan|inf\b", re.sub(r"<style>.*?</style>", "", text, flags=re.S))
    return page


@pytest.fixture
def flags(tmp_path):
    def video(*annotations):
        rows = [{"segment": segment, "label": name, "label_id": label} for segment, name, label in annotations]
        return {"subset": "Test", "duration": 20.0, "fps": 30.0, "annotations": rows}

    database = {
        "v_a": video(([0, 10], "Diving <i>", 0), ([5, 9], "HighJump", 4)),
        "v_b": video(([0, 10], "Diving <i>", 0)),
        "v_never_found": video(([3, 4], "LongJump", 2)),
    }
    results = {"a": [{"label": "Diving <i>", "score": s, "segment": [0, e]} for s, e in ((0.9, 9), (0.8, 4))], "b": []}
    (tmp_path / "g.json").write_text(json.dumps({"database": database}))
    (tmp_path / "p.json").write_text(json.dumps({"results": results}))
    return ["--ground_truth", tmp_path / "g.json", "--predictions", tmp_path / "p.json"]


def test_every_part_is_there(tmp_path, flags):
    page = report(tmp_path, *flags, "--tiou", "0.3,0.5,0.95")
    for text in ("Diving <i>", "HighJump", "LongJump", "v_a", "16.67%", "tIoU 0.95", "localization error", "missed"):
        assert text in page.text, text
    curves = [attributes for tag, attributes in page.tags if tag == "path"]
    assert len(curves) == 3 * (1 + 3)
    assert "Training" not in page.text


def test_training_curves(tmp_path, flags):
    run = tmp_path / "run"
    run.mkdir()
    train = [{"kind": "train", "epoch": e, "step": e, "loss": 1 / e, "cls_loss": 0.5 / e, "lr": 1e-4} for e in (1, 2)]
    rows = [*train, {"kind": "eval", "epoch": 2, "step": 2, "mAP": 0.25}]
    being_written = '{"kind": "tr'
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + being_written)
    page = report(tmp_path, *flags, "--run_dir", run)
    assert "cls_loss" in page.text and "mAP of the averaged weights" in page.text and "Learning rate" in page.text


def test_no_predictions_at_all(tmp_path, flags):
    (tmp_path / "p.json").write_text(json.dumps({"results": {}}))
    page = report(tmp_path, *flags)
    assert "No video has both actions and detections" in page.text and "100.0%" in page.text


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 2, "cannot read"),
        ("{}\n", 1, "not a record of training"),
        ('{"kind\n{}\n', 1, "metrics.jsonl is not valid JSON"),
    ],
)
def test_a_run_without_a_record_is_one_line(tmp_path, flags, capsys, content, code, message):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    command = [*flags, "--report", tmp_path / "out", "--run_dir", tmp_path]
    assert cli.run(evaluate.main, list(map(str, command))) == code
    assert message in capsys.readouterr().err
    assert cli.run(evaluate.main, list(map(str, [*flags, "--run_dir", tmp_path]))) == 2
    assert "--run_dir gives training curves to --report" in capsys.readouterr().err


@pytest.mark.skipif(not RDFA_DATA, reason="needs RDFA_DATA")
def test_thumos14_and_published_detections(tmp_path):
    root = Path(RDFA_DATA, "thumos14")
    truth, predictions = root / "thumos14.json.gz", root / "predictions_a2net_af38.txt.gz"
    page = report(tmp_path, "--ground_truth", truth, "--predictions", predictions, "--subset", "Test")
    assert "VolleyballSpiking" in page.text and "34,591" in page.text
    assert (tmp_path / "out" / "report.html").stat().st_size < 300_000
