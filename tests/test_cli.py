"""Exit codes and one-line errors, for every command alike."""

import errno
import os
import subprocess
import sys

import pytest

import export
import train
from rdfa import cli, convert, detect, evaluate
from rdfa.data import synthetic
from rdfa.errors import RunError, UsageError

COMMANDS = [train.main, export.main, convert.main, detect.main, evaluate.main, synthetic.main]


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("x = 1:\n  give 2"), 2, "error: x = 1: give 2\n"),
        (RunError("bad"), 1, "error: bad\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: writing: No space left on device; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 1, "error: /a: Permission denied; make room for it"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_are_one_line_and_a_code(capsys, error, code, line):
    assert cli.run(raising(error)) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_programming_errors_keep_their_traceback():
    for error in (KeyError("x"), OSError("of a library")):
        with pytest.raises(type(error)):
            cli.run(raising(error))


def test_a_reader_that_leaves_is_no_error_to_speak_of():
    code = "import sys; from rdfa import cli; sys.exit(cli.run(lambda argv: print('x' * int(sys.argv[1]))))"
    for length in ("1", "1000000"):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([sys.executable, "-c", code, length], stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
def test_wrong_flags_are_one_line(capsys, main):
    assert cli.run(main, []) == 2  # each has a required one
    required = capsys.readouterr()
    assert required.out == "" and required.err.startswith("error: ") and required.err.count("\n") == 1
    assert "required" in required.err and "--help" in required.err


def test_a_misspelt_flag_gets_the_nearest(capsys):
    for argv, near in ((["--run_dri", "x"], "--run_dir"), (["--gin-parm=1"], "--gin_param")):
        assert cli.run(train.main, ["--run_dir", "y", *argv]) == 2
        err = capsys.readouterr().err
        assert argv[0] in err and err.endswith(f"did you mean {near}?\n")
    assert cli.run(train.main, ["--run_dir", "y", "--mode", "tset"]) == 2
    assert "invalid choice: 'tset'" in capsys.readouterr().err
