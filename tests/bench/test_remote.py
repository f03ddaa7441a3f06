"""The client of the benchmark: what it says where there is no server; with one, in tests/serve/test_server.py."""

import importlib

import pytest

import serve_bench
from rdfa.bench.remote import RemoteBackend
from rdfa.errors import UsageError
from tests.serve.load import free_port


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080",
        "http://localhost",
        "ftp://h:1",
        "http://h:1/v2/models",
        "http://:80",
        "http://h:99999",
        "http://[",
    ],
)
def test_url_must_be_one(url):
    with pytest.raises(UsageError, match="http://HOST:PORT"):
        RemoteBackend(url)


@pytest.mark.parametrize(("scheme", "extra"), [("http", "client"), ("grpc", "triton_server")])
def test_missing_client_is_named_with_its_extra(monkeypatch, scheme, extra):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=rf"tritonclient.*rdfa-s6\[{extra}\]"):
        RemoteBackend(f"{scheme}://localhost:1")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server(scheme):
    pytest.importorskip(f"tritonclient.{scheme}", reason="pip install 'tritonclient[all]'")
    with pytest.raises(UsageError, match="no server answers"):
        RemoteBackend(f"{scheme}://localhost:{free_port()}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--artifact", "OUT", "--backends", "eager"), "without --backends"),
        (("--artifact", "OUT", "--dtype", "float16"), "without --backends"),
        (("--kernels",), "goes with --artifact"),
        (("--artifact", "OUT", "--connections", "0"), "--connections 0"),
    ],
)
def test_flags_that_do_not_go_with_a_server(flags, words):
    with pytest.raises(UsageError, match=words):
        serve_bench.main([*flags, "--url", "http://localhost:1", "--output", "bench"])
