"""Reading a manifest: what is refused, in one line."""

import json
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdfa import runtime
from rdfa.errors import RunError, UsageError
from rdfa.runtime import manifest as reader

CONTENT = b"0123456789"
# SHA-256 of the ten digits.
DIGEST = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"


@pytest.fixture
def artifact(tmp_path):
    """A directory whose one file is no model: enough for everything that happens before a file is opened."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "detector.onnx").write_bytes(CONTENT)
    entry = {"format": "onnx", "sha256": DIGEST, "size": len(CONTENT)}
    write(folder, files={"detector.onnx": entry})
    return folder


def write(folder, **changes):
    manifest = {"format_version": 1, "config": "", "features": {}, "classes": [], "versions": {}, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def refused(folder, message, error=RunError):
    with pytest.raises(error, match=message) as caught:
        reader.verify(folder, reader.read(folder))
    assert "\n" not in str(caught.value)


def test_intact_artifact_passes(artifact):
    manifest = reader.read(artifact)
    reader.verify(artifact, manifest)
    assert reader.find(manifest, "onnx") == "detector.onnx"
    assert reader.find(manifest, "torchscript") is None


@settings(max_examples=40)
@given(bit=st.integers(0, 8 * len(CONTENT) - 1))
def test_flipped_bit(tmp_path_factory, bit):
    folder = tmp_path_factory.mktemp("flipped")
    damaged = bytearray(CONTENT)
    damaged[bit // 8] ^= 1 << bit % 8
    (folder / "detector.onnx").write_bytes(damaged)
    write(folder, files={"detector.onnx": {"format": "onnx", "sha256": DIGEST, "size": len(CONTENT)}})
    refused(folder, "SHA-256")
    shutil.rmtree(folder)


def test_features_that_say_too_little(artifact):
    with pytest.raises(RunError, match=r"'features' lacks dimension, downsample_rate, .*: export the artifact again"):
        runtime.open_file(artifact, "detector.onnx", "eager")


def test_truncated_file(artifact):
    (artifact / "detector.onnx").write_bytes(CONTENT[:-1])
    refused(artifact, "has 9 bytes, the manifest says 10")


def test_missing_file(artifact):
    (artifact / "detector.onnx").unlink()
    refused(artifact, "is missing")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "folder/file", "..", "", "a\\b", "a\0b"])
def test_path_that_leaves_the_directory(artifact, name):
    (artifact.parent / "secret").write_bytes(CONTENT)
    write(artifact, files={name: {"format": "onnx", "sha256": DIGEST, "size": len(CONTENT)}})
    refused(artifact, "leaves the directory")


def test_link_that_leaves_the_directory(artifact):
    (artifact.parent / "secret").write_bytes(CONTENT)
    (artifact / "detector.onnx").unlink()
    (artifact / "detector.onnx").symlink_to(artifact.parent / "secret")
    refused(artifact, "leaves the directory")


def test_no_artifact(tmp_path):
    refused(tmp_path, re.escape("make one with export.py"), UsageError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 2}', "\ufeff{}"])
def test_damaged_or_foreign_manifest(artifact, text):
    (artifact / "manifest.json").write_text(text)
    refused(artifact, "export")


@pytest.mark.parametrize("section", ["config", "features", "classes", "files", "versions"])
def test_missing_section(artifact, section):
    write(artifact, **{section: None})
    refused(artifact, f"no section '{section}'")


@pytest.mark.parametrize("entry", [None, {}, {"format": "onnx", "size": 10}])
def test_incomplete_entry(artifact, entry):
    write(artifact, files={"detector.onnx": entry})
    refused(artifact, "lacks format, size or sha256")


def test_nothing_is_opened_before_its_hash_is_checked(artifact):
    """The file is no model; a runtime that opened it would say so in other words."""
    (artifact / "detector.onnx").write_bytes(CONTENT[::-1])
    with pytest.raises(RunError, match="SHA-256"):
        runtime.load(artifact, "onnxruntime")
