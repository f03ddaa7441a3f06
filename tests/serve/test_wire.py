"""Bodies of requests and answers: both forms, every type, and whatever bytes may come."""

import struct

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdfa.serve import wire
from rdfa.serve.models import TensorSpec
from rdfa.serve.refusals import BadRequest
from tests.serve import traffic

TENSORS = {
    "x": ("FP32", np.arange(6, dtype=np.float32).reshape(3, 2)),
    "fps": ("FP64", np.array([29.97])),
    "mask": ("BOOL", np.array([[True, False, True]])),
    "n": ("INT64", np.array([-(2**62), 3])),
    "empty": ("FP32", np.empty((0, 4), np.float32)),
}


def decode(content, tail=b""):
    text = orjson.dumps(content)
    return wire.decode(bytearray(text + tail), str(len(text)) if tail else None)


@pytest.mark.parametrize("binary", [True, False])
def test_every_type_arrives_as_it_was_sent(binary):
    headers, body = traffic.request_body(TENSORS, binary, id="7", outputs=[{"name": "y"}])
    request = wire.decode(bytearray(body), headers.get(traffic.JSON_LENGTH))
    assert (request.id, request.outputs, request.binary) == ("7", {"y": binary}, binary)
    assert request.inputs.keys() == TENSORS.keys()
    for name, (_, values) in TENSORS.items():
        assert request.inputs[name].dtype == values.dtype
        np.testing.assert_array_equal(request.inputs[name], values)


def test_nested_lists_are_taken():
    request = decode({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}]})
    np.testing.assert_array_equal(request.inputs["x"], [[1, 2], [3, 4]])


X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "an object"),
        ({}, "inputs: a list"),
        ({"inputs": [3]}, "inputs[0]: an object"),
        ({"inputs": [{**X, "name": None}]}, "inputs[0].name: a string"),
        ({"inputs": [X, X]}, "twice"),
        ({"inputs": [{**X, "datatype": "FP8"}]}, "'FP8'"),
        ({"inputs": [{**X, "datatype": ["FP32"]}]}, "datatype"),
        ({"inputs": [{**X, "shape": [-2]}]}, "[-2]"),
        ({"inputs": [{**X, "shape": [True, 2]}]}, "[True, 2]"),
        ({"inputs": [{**X, "shape": [3]}]}, "has 2 elements"),
        ({"inputs": [{**X, "shape": [2**39, 1]}]}, "has 2 elements"),
        ({"inputs": [{**X, "shape": [0, 2**62, 2**62]}]}, "too large"),
        ({"inputs": [{**X, "shape": [1] * 65}]}, "too large"),
        ({"inputs": [{**X, "data": None}]}, "data of input 'x': a list"),
        ({"inputs": [{**X, "data": [1, [2]]}]}, "ragged"),
        ({"inputs": [{**X, "data": [1, "2"]}]}, "not all FP32"),
        ({"inputs": [{**X, "data": [1, None]}]}, "not all FP32"),
        ({"inputs": [{**X, "datatype": "BOOL"}]}, "not all BOOL"),
        ({"inputs": [{**X, "parameters": []}]}, None),
        ({"inputs": [{**X, "parameters": 3}]}, "parameters"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}, "0 bytes are left"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": -1}}]}, "binary_data_size -1"),
        ({"inputs": [X], "outputs": {"name": "y"}}, "outputs: a list"),
        ({"inputs": [X], "id": 7}, "id: a string"),
    ],
)
def test_what_is_wrong_is_said(content, words):
    if words is None:
        assert decode(content).inputs.keys() == {"x"}
        return
    with pytest.raises(BadRequest) as caught:
        decode(content)
    assert words in caught.value.message


def test_bytes_that_are_too_few_or_too_many():
    entry = {**X, "parameters": {"binary_data_size": 8}}
    assert decode({"inputs": [entry]}, struct.pack("<2f", 1, 2)).inputs["x"].tolist() == [1, 2]
    with pytest.raises(BadRequest, match="4 bytes follow"):
        decode({"inputs": [entry]}, bytes(12))
    with pytest.raises(BadRequest, match="FP32 needs 12"):
        decode({"inputs": [{**entry, "shape": [3]}]}, bytes(8))


@pytest.mark.parametrize("length", ["-1", "9999", "x", "", "²"])
def test_length_of_the_json_must_be_one(length):
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        wire.decode(bytearray(orjson.dumps({"inputs": [X]})), length)


FIELDS = ["inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "binary_data_size"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "binary_data_size"]
            ),
            inner | st.sampled_from(["FP32", "BOOL", 1, 8, "x"]),
            max_size=6,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(json_values, max_size=3), st.binary(max_size=16))
def test_any_request_is_read_or_refused(inputs, tail):
    text = orjson.dumps({"inputs": inputs, "outputs": inputs[:1]}, default=str)
    for body in (text + tail, tail):
        for length in (None, str(len(text))):
            try:
                wire.decode(bytearray(body), length)
            except BadRequest as refusal:
                assert refusal.message and "\n" not in refusal.message and len(refusal.message) <= 500


SPECS = (TensorSpec("scores", "FP32", (-1,)), TensorSpec("names", "BYTES", (-1,)), TensorSpec("mask", "BOOL", (-1, 2)))
ANSWER = {
    "scores": np.array([0.5, 0.25], np.float32),
    "names": np.array([b"jump", "höher".encode()], np.object_),
    "mask": np.array([[True, False]]),
}


@pytest.mark.parametrize("binary", [True, False])
def test_answer_is_read_as_it_was(binary):
    request = wire.Request("7", {}, {}, binary)
    body, length = wire.encode("detections", request, ANSWER, SPECS)
    assert (length is not None) == binary
    found = traffic.read_outputs(body, None if length is None else str(length))
    assert found.keys() == ANSWER.keys()
    for name, values in ANSWER.items():
        np.testing.assert_array_equal(found[name], values)


def test_answer_has_the_wanted_outputs_each_in_its_form():
    body, length = wire.encode("m", wire.Request("", {}, {"names": True, "scores": False}, False), ANSWER, SPECS)
    content = orjson.loads(body[:length])
    assert [entry["name"] for entry in content["outputs"]] == ["names", "scores"]
    assert content["outputs"][0]["parameters"] == {"binary_data_size": len(body) - length}
    assert content["outputs"][1]["data"] == [0.5, 0.25]
    with pytest.raises(BadRequest, match="did you mean 'names'"):
        wire.check_outputs({"name": True}, SPECS)
