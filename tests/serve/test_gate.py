"""Requests of all kinds through the adapter, without the model server: right, typed, bounded, in time."""

import asyncio
import itertools
import json
import threading
from collections import Counter

import pytest

from rdfa.inference.detectors import open_artifact
from rdfa.runtime import manifest as manifests
from rdfa.serve import models
from rdfa.serve.gate import Gate
from rdfa.serve.service import REQUESTS, Limits, Service
from tests.deploy.artifacts import tiny_artifact
from tests.serve import client, traffic

MAX_BYTES, TIMEOUT = 50_000, 1.0


@pytest.fixture(scope="module")
def source():
    return open_artifact(str(tiny_artifact()), "eager")


def make(source, max_requests=64, timeout=TIMEOUT):
    spec = manifests.read(tiny_artifact())["features"]
    service = Service(source, spec, Limits(4, max_requests, timeout, MAX_BYTES))

    async def model_server(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"of the model server"})

    return Gate(model_server, service)


def error_of(answer):
    (text,) = json.loads(answer.body).values()
    assert "\n" not in text and len(text) < 300
    return text


@pytest.fixture(scope="module")
def exchanges(source):
    return traffic.one_of_each(source, MAX_BYTES, TIMEOUT)


@pytest.mark.parametrize("kind", traffic.GOOD)
def test_good_request_is_answered_right(source, exchanges, kind):
    answer = asyncio.run(client.call(make(source), exchanges[kind]))
    assert answer.status == 200
    assert traffic.right(exchanges[kind], answer.body, answer.headers.get(traffic.JSON_LENGTH))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("malformed", "not JSON"),
        ("truncated", "binary_data_size"),
        ("shape", "[-1, 6, -1]"),
        ("datatype", "float64: send it as FP32"),
        ("nan", "NaN"),
        ("length", "the next multiple of 2"),
        ("unknown_input", "did you mean 'mask'"),
        ("unknown_output", "did you mean 'cls_logits'"),
        ("unknown_model", "no model 'detecter'"),
        ("oversized", "50000 bytes"),
        ("compressed", "'gzip'"),
        ("too_slow", "within 1 s"),
    ],
)
def test_bad_request_gets_its_status_and_one_line(source, exchanges, kind, words):
    answer = asyncio.run(client.call(make(source), exchanges[kind]))
    assert answer.status == traffic.BAD[kind]
    assert words in error_of(answer)


def test_right_is_not_always(source, exchanges):
    good = exchanges["detector"]
    wrong = good._replace(wanted={**good.wanted, "offsets": good.wanted["offsets"] + 0.01})
    answer = asyncio.run(client.call(make(source), good))
    assert not traffic.right(wrong, answer.body, answer.headers[traffic.JSON_LENGTH])


def test_hundreds_at_once(source):
    gate = make(source, max_requests=400, timeout=60)
    exchanges = list(itertools.islice(traffic.mixed(source, 3, MAX_BYTES, timeout=0), 400))
    exchanges = [e._replace(pause=min(e.pause, 0.3)) for e in exchanges if e.kind != "too_slow"]

    async def all_at_once():
        return await asyncio.gather(*(client.call(gate, e) for e in exchanges))

    for exchange, answer in zip(exchanges, asyncio.run(all_at_once()), strict=True):
        assert answer.status == exchange.status, exchange.kind
        if answer.status == 200:
            assert traffic.right(exchange, answer.body, answer.headers.get(traffic.JSON_LENGTH)), exchange.kind
        else:
            error_of(answer)
    assert Counter(e.status for e in exchanges)[200] > 200


@pytest.fixture
def held(monkeypatch):
    """The detector computes nothing until the event is set."""
    event, run = threading.Event(), models.run
    monkeypatch.setattr(models, "run", lambda *args: event.wait(10) and run(*args))
    yield event
    event.set()


def test_queue_is_bounded(source, exchanges, held):
    gate, good = make(source, max_requests=3, timeout=20), exchanges["detector"]

    async def five():
        tasks = [asyncio.ensure_future(client.call(gate, good)) for _ in range(5)]
        done, _ = await asyncio.wait(tasks, timeout=1)
        held.set()
        return [t.result() for t in done], await asyncio.gather(*tasks)

    refused, answers = asyncio.run(five())
    assert [a.status for a in refused] == [503, 503]
    assert all(int(a.headers["retry-after"]) > 0 and "try again" in error_of(a) for a in refused)
    assert Counter(a.status for a in answers) == {200: 3, 503: 2}


def test_late_answer_is_a_timeout(source, exchanges, held):
    gate = make(source, timeout=0.3)

    async def late_then_free():
        answer = await client.call(gate, exchanges["detector"])
        held.set()
        return answer, await client.call(gate, exchanges["detections"])

    late, good = asyncio.run(late_then_free())
    assert late.status == 504 and "0.3 s" in error_of(late)
    assert good.status == 200


def test_client_that_leaves_frees_its_place(source, exchanges, held):
    gate, good = make(source, max_requests=1), exchanges["detector"]
    messages = [{"type": "http.request", "body": good.body}, {"type": "http.disconnect"}]
    headers = [(name.encode(), value.encode()) for name, value in good.headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v2/models/detector/infer", "headers": headers}

    async def receive():
        return messages.pop(0)

    async def leave_then_come():
        await gate(scope, receive, pytest.fail)
        held.set()
        return await client.call(gate, good)

    assert asyncio.run(leave_then_come()).status == 200


def test_fault_of_the_server_is_500_and_in_its_log(source, exchanges, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(models, "run", fail)
    answer = asyncio.run(client.call(make(source), exchanges["detector"]))
    assert answer.status == 500 and "log" in error_of(answer)
    assert "out of memory" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics", 200),
        ("GET", "/v2", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models/detector/ready", 200),
        ("POST", "/v2/repository/models/detector/unload", 404),
        ("POST", "/v1/models/detector:predict", 404),
        ("POST", "/v2/models/detector/versions/1/infer", 404),
        ("DELETE", "/v2", 404),
    ],
)
def test_paths_that_are_open(source, exchanges, method, path, status):
    answer = asyncio.run(client.call(make(source), exchanges["detector"], method, path))
    assert answer.status == status
    if status != 200:
        assert path in error_of(answer)


def test_requests_are_counted(source, exchanges):
    def count(model, status):
        return REQUESTS.labels(model, status)._value.get()

    before = count("detector", 200), count("detector", 400), count("unknown", 404)
    for kind in ("detector", "nan", "unknown_model"):
        asyncio.run(client.call(make(source), exchanges[kind]))
    assert (count("detector", 200), count("detector", 400), count("unknown", 404)) == tuple(n + 1 for n in before)
