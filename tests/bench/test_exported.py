"""Rows of one backend run in two ways."""

import pytest

from rdfa import runtime
from rdfa.bench import exported
from rdfa.runtime import manifest as manifests

MANIFEST = {"files": {"librdfa_ort.so": {"format": "onnx_library"}}}


@pytest.mark.parametrize(
    ("reason", "manifest", "said"),
    [
        (None, MANIFEST, None),
        (None, {"files": {}}, "onnxruntime runs without a native library here"),
        ("it is not installed", MANIFEST, "it is not installed"),
    ],
)
def test_the_plain_run_is_there_where_there_is_another(reason, manifest, said, monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "availability", lambda artifact: {"onnxruntime": reason})
    monkeypatch.setattr(manifests, "read", lambda artifact: manifest)
    found = exported.availability(tmp_path)["onnxruntime_plain"]
    assert found is None if said is None else found.startswith(said)


def test_the_plain_run_leaves_the_library_out(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(runtime, "load", lambda *args, **options: calls.append((args, options)))
    exported.load(tmp_path, "onnxruntime_plain", "cpu", 1)
    exported.load(tmp_path, "onnxruntime", "cpu", 1)
    assert calls == [
        ((tmp_path, "onnxruntime"), {"device": "cpu", "threads": 1, "native": False}),
        ((tmp_path, "onnxruntime"), {"device": "cpu", "threads": 1}),
    ]
