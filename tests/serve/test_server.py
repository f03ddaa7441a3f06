"""The command with the model server: protocol, Triton's clients, load, SIGTERM. Longer: `tests/serve/load.py`."""

import contextlib
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest

import serve_bench
from rdfa.bench import remote
from rdfa.errors import RunError, UsageError
from rdfa.inference.detectors import open_artifact
from tests.deploy.artifacts import tiny_artifact
from tests.serve import load, traffic

# Not imported here: the messages of its gRPC and those of Triton's client have the same names.
pytestmark = pytest.mark.skipif(find_spec("kserve") is None, reason="kserve is missing: pip install 'rdfa-s6[server]'")

TIMEOUT = 15.0


@pytest.fixture(scope="module")
def source():
    return open_artifact(str(tiny_artifact()), None)


@pytest.fixture(scope="module")
def server():
    """(process, HTTP port, gRPC port)."""
    grpc_port = load.free_port()
    with load.running("--grpc_port", str(grpc_port), "--timeout", str(TIMEOUT)) as (process, port):
        yield process, port, grpc_port


@pytest.fixture(scope="module")
def good(source):
    return traffic.one_of_each(source, 2**20, TIMEOUT)


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_and_metadata(server):
    _, port, _ = server
    assert [get(port, f"/v2/health/{name}")[0] for name in ("live", "ready")] == [200, 200]
    assert json.loads(get(port, "/v2")[1])["extensions"] == ["binary_tensor_data"]
    assert json.loads(get(port, "/v2/models/detections/ready")[1])["ready"] is True
    inputs = json.loads(get(port, "/v2/models/detector")[1])["inputs"]
    assert inputs[0] == {"name": "features", "datatype": "FP32", "shape": [-1, traffic.CHANNELS, -1]}
    code, text = get(port, "/v2/models/nothing")
    assert code == 404 and "nothing" in json.loads(text)["error"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("kind", ["detector", "detections"])
def test_triton_client(server, good, protocol, kind):
    triton = pytest.importorskip(f"tritonclient.{protocol}", reason="pip install 'tritonclient[all]'")
    client = triton.InferenceServerClient(f"127.0.0.1:{server[1 if protocol == 'http' else 2]}")
    assert client.is_server_ready() and client.is_model_ready(kind)
    sent = good[kind].tensors
    inputs = []
    for name, (datatype, values) in sent.items():
        inputs.append(triton.InferInput(name, list(values.shape), datatype))
        inputs[-1].set_data_from_numpy(values)
    answer = client.infer(kind, inputs, request_id="7")
    found = {name: answer.as_numpy(name) for name in good[kind].wanted}
    assert traffic.same(good[kind], found)
    (name, *_) = good[kind].wanted
    chosen = client.infer(kind, inputs, outputs=[triton.InferRequestedOutput(name)])
    assert [n for n in good[kind].wanted if chosen.as_numpy(n) is not None] == [name]
    bad = sent["features"][1].copy()
    bad.flat[3] = np.nan
    inputs[0].set_data_from_numpy(bad)
    with pytest.raises(triton.InferenceServerException, match="NaN") as caught:
        client.infer(kind, inputs)
    assert caught.value.status() == ("400" if protocol == "http" else "StatusCode.INVALID_ARGUMENT")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_benchmark_client(server, good, protocol):
    pytest.importorskip(f"tritonclient.{protocol}", reason="pip install 'tritonclient[all]'")
    exchange = good["detector"]
    backend = remote.RemoteBackend(f"{protocol}://127.0.0.1:{server[1 if protocol == 'http' else 2]}")
    assert backend.model == "detector"
    features, mask = (values for _, values in exchange.tensors.values())
    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(lambda _: backend.run(features, mask), range(8)):
            assert traffic.same(exchange, outputs._asdict())
    with pytest.raises(RunError, match="the next multiple of 2"):
        backend.run(features[..., :-1].copy(), mask[..., :-1].copy())
    with pytest.raises(UsageError, match="no model nothing"):
        remote.RemoteBackend(backend._url, "nothing")


def test_benchmark_of_a_server(server, tmp_path):
    pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
    pytest.importorskip("mlperf_loadgen", reason="pip install mlcommons-loadgen")
    flags = ["--artifact", str(tiny_artifact()), "--url", f"http://127.0.0.1:{server[1]}", "--output", str(tmp_path)]
    serve_bench.main([*flags, "--scenarios", "sweep,SingleStream", "--time", "64", "--seconds", "0.1"])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["scenario"], row["backend"], row["verdict"]) for row in rows] == [
        ("sweep", "server", "valid"),
        ("SingleStream", "server", "valid"),
    ]
    assert all(row["parity"]["ok"] and row["throughput_videos_per_s"] > 0 for row in rows)


def test_grpc_takes_no_other_tensors(server, good):
    triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
    client = triton.InferenceServerClient(f"127.0.0.1:{server[2]}")
    strings = triton.InferInput("features", [2], "BYTES")
    strings.set_data_from_numpy(np.array([b"a", b"b"], np.object_))
    strings._raw_content = strings._raw_content[:-1]
    with pytest.raises(triton.InferenceServerException, match="metadata") as caught:
        client.infer("detections", [strings])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_grpc_cannot_unload_a_model(server):
    triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
    client = triton.InferenceServerClient(f"127.0.0.1:{server[2]}")
    with contextlib.suppress(triton.InferenceServerException):
        client.unload_model("detector")
    assert client.is_model_ready("detector") and get(server[1], "/v2/models/detector/ready")[0] == 200


def test_mixed_requests_at_once(server, source):
    _, port, _ = server
    assert load.all_at_once(port, load.requests(source, 150, timeout=TIMEOUT)) == {"right": 150}
    assert 'rdfa_requests_total{model="detector",status="400"}' in get(port, "/metrics")[1]


def test_stops_after_what_it_accepted(server, source):
    process, port, _ = server
    exchanges = [e for e in load.requests(source, 200, seed=3) if e.status == 200][:30]
    outcomes, under_way = load.stopped(process, port, exchanges, after=0.5)
    assert under_way and outcomes["right"] and set(outcomes) <= {"right", "not taken"}
    assert process.wait(TIMEOUT) == 0
