"""python -m rdfa.serve: its refusals, before anything is served."""

import importlib.util
import socket

import pytest

from rdfa import cli
from rdfa.serve.__main__ import main
from tests.deploy.artifacts import tiny_artifact


def complaint(capsys, *flags):
    code = cli.run(main, list(map(str, flags)))
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return code, text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max_batch", 0), "--max_batch 0"),
        (("--queue", -1), "--queue -1"),
        (("--timeout", "nan"), "--timeout nan"),
        (("--http_port", 70000), "--http_port 70000"),
        (("--grpc_prt", 1), "did you mean --grpc_port?"),
        (("--artifact", "nowhere"), "nowhere is no artifact"),
    ],
)
def test_wrong_invocation(capsys, monkeypatch, flags, words):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    code, text = complaint(capsys, "--artifact", "OUT", *flags)
    assert code == 2 and words in text


def test_missing_server_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, text = complaint(capsys, "--artifact", "OUT")
    assert code == 2 and "pip install 'rdfa-s6[server]'" in text


@pytest.mark.parametrize("flag", ["--http_port", "--grpc_port"])
def test_port_in_use(capsys, monkeypatch, flag):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "kserve" or real(name, *rest))
    with socket.create_server(("", 0)) as taken, socket.create_server(("", 0)) as other:
        port, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        ports = {"--http_port": free, "--grpc_port": free, flag: port}
        code, text = complaint(capsys, "--artifact", tiny_artifact(), *(w for pair in ports.items() for w in pair))
    assert code == 1 and f"{flag} {port}: Address already in use" in text
