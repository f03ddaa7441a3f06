"""Detectors of torch as backends, on the tiny artifact."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch

from ops import library
from rdfa import runtime
from rdfa.bench import backends
from rdfa.errors import UsageError
from tests.deploy.artifacts import int8_artifact, narrow_artifact, tiny_artifact

FEATURES = np.random.default_rng(0).standard_normal((2, 6, 38)).astype(np.float32)
MASK = np.ones((2, 38), bool)

if not library.loaded():
    pytest.skip(f"the artifact needs the native library: {library.REMEDY}", allow_module_level=True)


def test_all_that_the_runtime_knows_is_listed_and_reasons_name_the_remedy():
    reasons = backends.availability(tiny_artifact())
    assert set(runtime.backends()) < set(reasons)
    assert reasons["eager_plain"] is reasons["eager"] is None
    assert reasons["published"] == "a CUDA device alone runs it, not cpu"
    on_gpu = backends.availability(tiny_artifact(), "cuda")
    assert "pip install 'rdfa-s6[reference]'" in on_gpu["published"]
    assert on_gpu["cuda_graph"] is None


def test_halves_are_for_detectors_of_torch_and_for_files_that_hold_them():
    reasons = backends.availability(tiny_artifact(), dtype="bfloat16")
    assert reasons["eager"] is None and "bfloat16" in reasons["onnxruntime"]
    reasons = backends.availability(narrow_artifact(), dtype="bfloat16")
    assert reasons["eager"] is reasons["torchscript"] is None
    assert backends.load(narrow_artifact(), "torchscript", dtype="bfloat16", threads=1).dtype == "bfloat16"
    half = backends.load(tiny_artifact(), "eager", dtype="bfloat16", threads=1).run(FEATURES, MASK)
    single = backends.load(tiny_artifact(), "eager", threads=1).run(FEATURES, MASK)
    assert half.cls_logits.dtype == np.float32
    error = np.abs(half.cls_logits - single.cls_logits).max() / np.abs(single.cls_logits).max()
    assert 1e-4 < error < 0.2


def test_int8_is_for_files_that_passed_their_gate(tmp_path):
    reasons = backends.availability(int8_artifact(), dtype="int8")
    assert reasons["eager_plain"] is reasons["torchscript"] is None
    assert "measured of files" in reasons["eager"] and "measured of files" in reasons["torch_compile"]
    assert "no int8 aoti file" in reasons["aoti"] and "--dtype int8" in reasons["aoti"]
    plain, file = (backends.load(int8_artifact(), n, dtype="int8", threads=1) for n in ("eager_plain", "torchscript"))
    exact = backends.load(tiny_artifact(), "eager", threads=1).run(FEATURES, MASK)
    plain, file = plain.run(FEATURES, MASK), file.run(FEATURES, MASK)
    assert 1e-3 < np.abs(plain.cls_logits - exact.cls_logits).max() < 1
    assert np.abs(plain.cls_logits - file.cls_logits).max() < 0.5 * np.abs(plain.cls_logits - exact.cls_logits).max()
    shutil.copytree(int8_artifact(), tmp_path / "ungated")
    manifest = tmp_path / "ungated" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"]["detector.ts.int8.pt"]["map_gate"]
    manifest.write_text(json.dumps(content))
    assert "says nothing of the mAP" in backends.availability(tmp_path / "ungated", dtype="int8")["torchscript"]


def test_a_resident_call_computes_the_same():
    backend = backends.load(tiny_artifact(), "eager_plain", threads=1)
    seen = []
    forward = backend._call
    backend._call = lambda *inputs: seen.append(forward(*inputs)) or seen[-1]
    call = backend.resident(FEATURES, MASK)
    call()
    call()
    assert len(seen) == 2
    expected = backends.load(tiny_artifact(), "eager_plain", threads=1).run(FEATURES, MASK)
    assert torch.equal(seen[1][0], torch.from_numpy(expected.cls_logits))


def test_unknown_and_unavailable_backends():
    with pytest.raises(UsageError, match="unknown backend 'eagre': did you mean 'eager'"):
        backends.load(tiny_artifact(), "eagre")
    with pytest.raises(UsageError, match=r"backend cuda_graph cannot run .*: a CUDA device alone runs it"):
        backends.load(tiny_artifact(), "cuda_graph")


def test_torch_compile_captures_the_repeated_parts_and_gives_the_detectors_outputs(monkeypatch):
    """Without code generation, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.utils.counters.clear()
    compiled = backends.load(tiny_artifact(), "torch_compile", threads=1).run(FEATURES, MASK)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    expected = backends.load(tiny_artifact(), "eager_plain", threads=1).run(FEATURES, MASK)
    for value, wanted in zip(compiled, expected):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)
