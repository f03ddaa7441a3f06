"""Building the native library: incremental, atomic, and one clear line when it cannot be done."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops import build as builder

ROOT = Path(builder.__file__).parent.parent
SOURCE = '#include "value.h"\nextern "C" __attribute__((visibility("default"))) int value() { return VALUE; }\n'


@pytest.fixture
def project(monkeypatch, tmp_path):
    """A tiny library in a folder of its own, with a space in its name."""
    tmp_path = tmp_path / "a folder"
    (tmp_path / "csrc" / "part").mkdir(parents=True)
    (tmp_path / "csrc" / "value.h").write_text("#define VALUE 1\n")
    (tmp_path / "csrc" / "part" / "one.cpp").write_text(SOURCE)
    (tmp_path / "csrc" / "two.cpp").write_text("int unrelated = 2;\n")
    for name, path in (("LIBRARY", "lib.so"), ("SOURCES", "csrc"), ("OBJECTS", "objects")):
        monkeypatch.setattr(builder, name, tmp_path / path)
    return tmp_path


def value_of(library):
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).value())"
    environment = os.environ | {"LD_LIBRARY_PATH": str(builder._find_torch() / "lib")}
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stdout)


def times(project):
    return {path.name: path.stat().st_mtime_ns for path in project.rglob("*") if path.suffix in (".o", ".so")}


def age(path, seconds):
    then = path.stat().st_mtime + seconds
    os.utime(path, (then, then))


def test_only_what_changed_is_compiled(project):
    library = builder.build()
    assert value_of(library) == 1
    first = times(project)
    assert set(first) == {"part.one.cpp.o", "two.cpp.o", "lib.so"}
    builder.build()
    assert times(project) == first

    (project / "csrc" / "value.h").write_text("#define VALUE 7\n")
    age(project / "csrc" / "value.h", 5)
    builder.build()
    second = times(project)
    assert value_of(library) == 7
    assert second["two.cpp.o"] == first["two.cpp.o"] and second["part.one.cpp.o"] != first["part.one.cpp.o"]

    builder.build(force=True)
    assert times(project)["two.cpp.o"] != first["two.cpp.o"]


def test_a_failed_build_keeps_the_old_library(project, capsys):
    library = builder.build()
    (project / "csrc" / "part" / "one.cpp").write_text("this is not C++\n")
    age(project / "csrc" / "part" / "one.cpp", 5)
    with pytest.raises(builder.BuildError, match=r"failed on one\.cpp"):
        builder.build()
    assert "error" in capsys.readouterr().err
    assert value_of(library) == 1


def test_a_removed_source_leaves_the_library(project):
    builder.build()
    (project / "csrc" / "two.cpp").unlink()
    (project / "lib.so").unlink()
    assert value_of(builder.build()) == 1


@pytest.mark.parametrize("requested", ["/no/such/g++", "no-such-compiler -m64"])
def test_no_compiler_is_one_line_and_exit_code_1(monkeypatch, capsys, requested):
    monkeypatch.setenv("CXX", requested)
    assert builder.main([]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: CXX=") and "install GCC" in message and message.count("\n") == 1


def test_a_compiler_in_a_folder_with_a_space_or_with_flags(tmp_path, monkeypatch):
    compiler = tmp_path / "a folder" / "g++"
    compiler.parent.mkdir()
    compiler.symlink_to(shutil.which("g++"))
    for requested, words in ((str(compiler), [str(compiler)]), ("g++ -m64", ["g++", "-m64"])):
        monkeypatch.setenv("CXX", requested)
        assert builder._find_compiler() == words


def test_no_compiler_at_all(monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert builder.main([]) == 1
    assert "no C++ compiler (g++) was found" in capsys.readouterr().err


def test_no_torch_is_one_line_and_exit_code_1():
    """A fresh interpreter without site-packages: importing the package must not fail before the message."""
    result = subprocess.run([sys.executable, "-S", "-m", "ops.build"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: torch is not installed") and result.stderr.count("\n") == 1


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        builder.main(["--help"])
    assert caught.value.code == 0 and "python -m ops.build" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        builder.main(["--no-such-flag"])
    assert caught.value.code == 2


def test_kernels_export_no_symbol_that_another_instruction_set_could_take():
    """An inline function compiled for AVX-512 must not be the copy that the linker keeps for everybody."""
    builder.build()
    for isa in ("avx512", "avx2"):
        objects = list(builder.OBJECTS.glob(f"*/*.{isa}.cpp.o"))
        assert objects
        for path in objects:
            symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
            assert [line for line in symbols.splitlines() if line[17:18] in ("W", "u")] == []


def test_folder_without_onnxruntime_headers_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builder, "build", lambda force=False: builder.LIBRARY)
    assert builder.main(["--onnxruntime_headers", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert f"{tmp_path} has no onnxruntime_c_api.h" in message and message.count("\n") == 1
