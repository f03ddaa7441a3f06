"""Requests of every kind, good and bad, with what has to come back: for the tests and for `tests/serve/load.py`."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import orjson
import torch

from rdfa.bench.parity import compare_detections
from rdfa.inference.decode import Detections, detect
from rdfa.inference.detectors import Source
from rdfa.inference.inputs import blank_video
from rdfa.inference.pipeline import timing

JSON_LENGTH = "inference-header-content-length"
FPS = 29.97
GOOD = ("detector", "detector_json", "detections", "detections_json", "slow")
BAD = {
    "malformed": 400,
    "truncated": 400,
    "shape": 400,
    "datatype": 400,
    "nan": 400,
    "length": 400,
    "unknown_input": 400,
    "unknown_output": 400,
    "unknown_model": 404,
    "oversized": 413,
    "compressed": 415,
    "too_slow": 408,
}
CHANNELS, LEAST, MULTIPLE = 6, 64, 2  # of the tiny detector


class Exchange(NamedTuple):
    """A request and its right answer.

    pause: seconds in the middle of the body. wanted: the outputs, for status 200.
    """

    kind: str
    model: str
    headers: dict[str, str]
    body: bytes
    status: int
    pause: float = 0.0
    wanted: dict[str, np.ndarray] | None = None
    tensors: dict[str, tuple[str, np.ndarray]] | None = None  # what a good request sends: (datatype, values) by name


def mixed(source: Source, seed: int, max_bytes: int, timeout: float) -> Iterator[Exchange]:
    """Requests of all kinds in a random order, without end; of one detector, the tiny one."""
    rng, makers = random.Random(seed), _Makers(source, seed)
    good = [makers.good(kind) for kind in GOOD for _ in range(4)]
    bad = [makers.bad(kind, max_bytes, timeout) for kind in BAD if kind not in ("too_slow", "oversized")]
    rare = [makers.bad(kind, max_bytes, timeout) for kind in ("too_slow", "oversized")]
    for number in itertools.count(1):
        yield rng.choice(rare if number % 50 == 0 else bad if number % 3 == 0 else good)


def one_of_each(source: Source, max_bytes: int, timeout: float) -> dict[str, Exchange]:
    """A request of every kind, by its name."""
    makers = _Makers(source, seed=1)
    good = {kind: makers.good(kind) for kind in GOOD}
    return good | {kind: makers.bad(kind, max_bytes, timeout) for kind in BAD}


def right(exchange: Exchange, body: bytes, json_length: str | None) -> bool:
    """Whether the answer to a good request is right, up to the rounding of a batch."""
    return same(exchange, read_outputs(body, json_length))


def same(exchange: Exchange, found: dict[str, np.ndarray]) -> bool:
    """As `right`, of the outputs."""
    wanted = exchange.wanted
    if {name: a.dtype for name, a in found.items()} != {name: a.dtype for name, a in wanted.items()}:
        return False
    if exchange.model == "detector":
        return all(a.shape == found[n].shape and np.allclose(a, found[n], 1e-4, 1e-4) for n, a in wanted.items())
    # A score on a threshold, or beside an equal one, may fall to either side: a few may have no partner.
    pairs = compare_detections([_detections(found)], [_detections(wanted)])
    most = max(pairs["count"], pairs["reference_count"])
    names = dict(zip(wanted["labels"].tolist(), wanted["label_names"].tolist()))
    return (
        pairs["matched"] >= 0.97 * most
        and (most == 0 or max(pairs["max_abs_score"], pairs["max_abs_segment_s"]) < 1e-3)
        and found["label_names"].tolist() == [names.get(label) for label in found["labels"].tolist()]
    )


def _detections(arrays: dict[str, np.ndarray]) -> Detections:
    return Detections(arrays["segments"], arrays["scores"], arrays["labels"])


def read_outputs(body: bytes, json_length: str | None) -> dict[str, np.ndarray]:
    """The outputs of an answer; strings as bytes."""
    dtypes = {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}
    start = len(body) if json_length is None else int(json_length)
    found = {}
    for entry in json.loads(body[:start])["outputs"]:
        if "parameters" in entry:
            size = entry["parameters"]["binary_data_size"]
            data, start = body[start : start + size], start + size
        if entry["datatype"] == "BYTES":
            values = [s.encode() for s in entry["data"]] if "data" in entry else _strings(data)
            array = np.array(values, np.object_)
        elif "data" in entry:
            array = np.array(entry["data"], dtypes[entry["datatype"]])
        else:
            array = np.frombuffer(data, dtypes[entry["datatype"]])
        found[entry["name"]] = array.reshape(entry["shape"])
    return found


def _strings(data: bytes) -> list[bytes]:
    values, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        values.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return values


def request_body(
    tensors: dict[str, tuple[str, np.ndarray]], binary: bool, **more: object
) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request: name -> (datatype, values)."""
    entries, chunks = [], []
    for name, (datatype, values) in tensors.items():
        entry = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if binary:
            chunks.append(values.tobytes())
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            entry["data"] = values.ravel()
        entries.append(entry)
    content = {"inputs": entries, "parameters": {"binary_data_output": binary}, **more}
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return ({JSON_LENGTH: str(len(text))} if binary else {}), text + b"".join(chunks)


class _Makers:
    def __init__(self, source: Source, seed: int):
        self.source, self.rng = source, np.random.default_rng(seed)

    def good(self, kind: str) -> Exchange:
        pause = 0.3 if kind == "slow" else 0.0
        make = self._detections if kind.startswith("detections") else self._detector
        model, tensors, wanted = make()
        return Exchange(kind, model, *request_body(tensors, not kind.endswith("json")), 200, pause, wanted, tensors)

    def bad(self, kind: str, max_bytes: int, timeout: float) -> Exchange:
        model, tensors, _ = self._detector()
        datatype, values = tensors["features"]
        more, pause = {}, 0.0
        if kind == "shape":
            tensors["features"] = (datatype, values[:, :-1].copy())
        elif kind == "datatype":
            tensors["features"] = ("FP64", values.astype(np.float64))
        elif kind == "nan":
            values[0, 3, 5] = np.nan
        elif kind == "length":
            tensors = {name: (t, np.repeat(v, 2, -1)[..., : LEAST + 1].copy()) for name, (t, v) in tensors.items()}
        elif kind == "unknown_input":
            tensors["msk"] = tensors.pop("mask")
        elif kind == "unknown_output":
            more = {"outputs": [{"name": "logits"}]}
        elif kind == "unknown_model":
            model = "detecter"
        headers, body = request_body(tensors, binary=True, **more)
        if kind == "malformed":
            headers, body = {}, body[:40]
        elif kind == "truncated":
            body = body[:-7]
        elif kind == "oversized":
            body += bytes(max_bytes)
        elif kind == "compressed":
            headers |= {"content-encoding": "gzip"}
        elif kind == "too_slow":
            pause = timeout + 0.5
        return Exchange(kind, model, headers, body, BAD[kind], pause)

    def _detector(self) -> tuple[str, dict, dict]:
        batch, time = self.rng.integers(1, 4), LEAST + MULTIPLE * self.rng.integers(0, 3)
        features = self.rng.standard_normal((batch, CHANNELS, time), np.float32)
        mask = np.arange(time) < self.rng.integers(1, time + 1, (batch, 1))
        features *= mask[:, None]
        wanted = dict(zip(("cls_logits", "offsets", "point_mask"), self._forward(features, mask)))
        return "detector", {"features": ("FP32", features), "mask": ("BOOL", mask)}, wanted

    def _detections(self) -> tuple[str, dict, dict]:
        """The right answer comes from the parts of `rdfa.detect` by another way than the server's."""
        clips = int(self.rng.integers(1, LEAST + 8))
        features = self.rng.standard_normal((clips, CHANNELS), np.float32)
        time = max(LEAST, -(-clips // MULTIPLE) * MULTIPLE)
        padded, mask = np.zeros((1, CHANNELS, time), np.float32), np.arange(time)[None] < clips
        padded[0, :, :clips] = features.T
        when = timing(blank_video("", None, FPS), clips, self.source.config.dataset)
        outputs = map(torch.from_numpy, self._forward(padded, mask))
        (found,) = detect(*outputs, self.source.runner.points(time), [when], self.source.config.post)
        names = [self.source.class_names[label].encode() for label in found.labels_N.tolist()]
        wanted = {"segments": found.segments_N2, "scores": found.scores_N, "labels": found.labels_N}
        wanted["label_names"] = np.array(names, np.object_)
        tensors = {"features": ("FP32", features), "fps": ("FP64", np.array([FPS]))}
        return "detections", tensors, wanted

    def _forward(self, features: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = self.source.runner.forward(torch.from_numpy(features), torch.from_numpy(mask))
        return [output.numpy() for output in outputs]
