"""results.json against its schema, and what a user gets to see."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import jsonschema
import pytest
from rich.console import Console

from rdfa.bench import environment as environments
from rdfa.bench import report
from rdfa.bench.report import figures
from rdfa.bench.results import SCHEMA, Row, document, write_json
from rdfa.files import replacing
from tests.bench.fakes import MACHINE

VALID = Row(
    "onnxruntime", "cpu", "float32", "sweep", 1, 576, "valid",
    latency_ms={
        "min": 1.0, "mean": 2.0, "p50": 2.0, "p90": 3.0, "p95": 4.0, "p97": 5.0, "p99": 123.456, "p99.9": 130.0,
    },
    samples=40,
    throughput_videos_per_s=500.0, speedup_vs_reference=12.345, reference="eager_plain", equal_to_fastest=True,
    aa_spread=0.012, parity={"max_abs": 2.5e-6, "relative_l2": 1e-7, "ok": True},
    detections={
        "count": 7, "reference_count": 8, "matched": 6, "max_abs_segment_s": 0.01, "max_abs_score": None,
    }, peak_memory_mb=321.5, load_s=1.25, first_inference_ms=9.0, percent_of_peak=41.5,
)  # fmt: skip
INVALID = Row("eager", "cpu", "float32", "sweep", 1, 576, "invalid: cls_logits is off by <1>")
SKIPPED = Row("openvino", "cpu", "float32", "sweep", 1, 576, "skipped: pip install 'rdfa-s6[openvino]'")
ROWS = [VALID, dataclasses.replace(VALID, time=2304, equal_to_fastest=False), INVALID, SKIPPED]


def test_schema_is_a_schema_and_accepts_the_rows():
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    assert document(MACHINE, ROWS)["rows"][0]["latency_ms"]["p99"] == 123.456


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "invalid: off"},
        {"verdict": "fine"},
        {"latency_ms": None},
        {"latency_ms": {"p50": 1.0}},
        {"parity": {"max_abs": 1.0, "relative_l2": 1.0, "ok": False}},
        {"parity": None},
        {"samples": 0},
        {"batch": 0},
        {"speedup_vs_reference": -1.0},
    ],
    ids=str,
)
def test_schema_refuses_a_row_that_contradicts_itself(changes):
    with pytest.raises(jsonschema.ValidationError):
        document(MACHINE, [dataclasses.replace(VALID, **changes)])


@pytest.mark.parametrize("field", ["latency_ms", "throughput_videos_per_s", "speedup_vs_reference", "samples"])
def test_schema_refuses_any_speed_in_a_row_that_failed(field):
    with pytest.raises(jsonschema.ValidationError):
        document(MACHINE, [dataclasses.replace(INVALID, **{field: getattr(VALID, field)})])


def test_schema_has_every_field_of_a_row_and_no_other():
    properties = json.loads(SCHEMA.read_text())["$defs"]["row"]["properties"]
    assert set(properties) == {field.name for field in dataclasses.fields(Row)}


def test_a_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"value": float("nan")})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_write_makes_the_files(tmp_path):
    report.write(tmp_path / "new" / "folder", MACHINE, ROWS)
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == [
        "latency.png", "report.html", "results.json", "tails.png", "throughput.png",
    ]  # fmt: skip
    assert (folder / "latency.png").read_bytes().startswith(b"\x89PNG")
    jsonschema.validate(json.loads((folder / "results.json").read_text()), json.loads(SCHEMA.read_text()))


def printed(rows) -> str:
    stream = io.StringIO()
    report.print_table(MACHINE, rows, Console(file=stream, width=160))
    return stream.getvalue()


def test_table_shows_speed_of_valid_rows_and_reasons_of_the_others():
    text = printed(ROWS)
    line = next(line for line in text.splitlines() if "onnxruntime" in line and " 576" in line)
    cells = "onnxruntime = 1 576 2.00 3.00 123 500 12.3x 41.5 322 1.25 9.00 2.5e-06 6/8"
    assert line.split() == cells.split()
    assert "onnxruntime =" not in next(line for line in text.splitlines() if " 2304" in line)
    assert "eager (1x576): invalid: cls_logits is off by <1>" in text
    assert "openvino (1x576): skipped: pip install 'rdfa-s6[openvino]'" in text
    assert "differed by up to 1.2%" in text
    assert "Speed-up is against eager_plain" in text
    assert "as few as 40 timed calls" in text
    assert "<Imaginary> CPU (2 of 4 cores), 2 threads, torch 2.13.0, MALLOC_ARENA_MAX=1" in " ".join(text.split())


@pytest.mark.parametrize(("load", "said"), [(1.0, False), (1.1, True), (None, False)])
def test_a_busy_machine_is_said(load, said):
    lines = report.notes(MACHINE | {"load_average": load}, ROWS)
    assert any("Other programs were running" in line for line in lines) is said


def test_a_table_without_any_valid_row():
    assert "invalid: cls_logits" in printed([INVALID, SKIPPED])


class Page(HTMLParser):
    """Collects tags and the values of attributes that make a browser fetch something."""

    VOID = ("meta", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_fetches_nothing():
    text = report.page(MACHINE, ROWS, figures.draw(MACHINE, ROWS))
    page = Page(text)
    assert page.open == []
    assert page.fetched
    assert all(value.startswith("data:") for value in page.fetched)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert "script" not in page.tags
    assert 'name="viewport"' in text
    assert text.count("<td>onnxruntime") == 2
    assert "cls_logits is off by &lt;1&gt;" in text
    assert "&lt;Imaginary&gt;" in text


def test_plot_of_nothing_and_of_many_lines():
    assert figures.draw(MACHINE, [INVALID]) == {}
    many = [
        dataclasses.replace(VALID, backend=f"b{i}", batch=b, time=t, gflops=1.5, compulsory_mb=2.0)
        for i in range(3) for b in range(1, 7) for t in (32, 64)
    ]  # fmt: skip
    peaks = {"matmul_gflops": {"float32": 100.0}, "copy_gb_per_s": 10.0}
    pictures = figures.draw(MACHINE | {"peaks": peaks}, many)
    assert list(pictures) == list(figures.TITLES)
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())


def test_environment_names_the_machine_and_no_path_or_user(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    found = environments.describe(threads=3)
    assert found["threads"] == 3
    assert found["allocator"]["MALLOC_TRIM_THRESHOLD_"] == "123"
    assert found["cpu"]["model"] and 1 <= found["cpu"]["available"] <= found["cpu"]["logical"]
    assert "torch" in found["packages"]
    text = json.dumps(found)
    assert "hush" not in text
    assert not re.search(r'"/|/home|/root|/work', text)
    assert "3 threads" in environments.summary(found)
