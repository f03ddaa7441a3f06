"""Bodies of inference requests and answers over HTTP: JSON, with tensors in it or, in binary, after it.

The binary form is the protocol's binary tensor data extension: a header gives the length of the JSON, and the bytes of
the tensors that have a `binary_data_size` follow it in order, little-endian, strings after their 4-byte lengths.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from rdfa.serve.models import DTYPES, Arrays, TensorSpec
from rdfa.serve.refusals import BadRequest
from rdfa.settings import nearest

# What the elements of a JSON list may be read as, by the kind of what is asked for: bool, signed, unsigned, float.
_KINDS = {"f": "fiu", "i": "iu", "b": "b"}
READ = ("FP32", "FP64", "INT64", "BOOL")
MOST_AXES, MOST_ELEMENTS = 8, 2**40  # numpy cannot shape an array of more, even where an axis of 0 leaves it empty


@dataclass(frozen=True)
class Request:
    """id: of the client's choice, or empty. outputs: the wanted ones, and whether in binary; none: all of them."""

    id: str
    inputs: Arrays
    outputs: dict[str, bool]
    binary: bool  # outputs that are not named


def decode(body: bytearray, json_length: str | None) -> Request:
    """Read a request.

    Args:
        json_length: the header Inference-Header-Content-Length; None: the whole body is JSON.

    Raises:
        BadRequest: it is none; says what of it is wrong.
    """
    length = len(body)
    if json_length is not None:
        if not json_length.isascii() or not json_length.isdigit() or int(json_length) > length:
            raise BadRequest(f"Inference-Header-Content-Length {json_length!r} for a body of {length} bytes")
        length = int(json_length)
    try:
        content = orjson.loads(memoryview(body)[:length])
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the request is not JSON: {error}") from None
    content = _typed("the request", content, dict)
    rest, start, inputs = memoryview(body), length, {}
    for i, entry in enumerate(_typed("inputs", content.get("inputs"), list)):
        name = _typed(f"inputs[{i}].name", _typed(f"inputs[{i}]", entry, dict).get("name"), str)
        if name in inputs:
            raise BadRequest(f"input {name!r} is there twice: send it once")
        datatype, shape = entry.get("datatype"), _shape(name, entry.get("shape"))
        if datatype not in READ:
            raise BadRequest(f"input {name!r} has datatype {datatype!r}: one of {', '.join(READ)} is understood")
        size = _parameters(f"input {name!r}", entry).get("binary_data_size")
        if size is None:
            inputs[name] = _from_list(name, datatype, shape, entry.get("data"))
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - start:
            raise BadRequest(f"input {name!r} has binary_data_size {size}: {len(rest) - start} bytes are left")
        inputs[name] = from_bytes(name, datatype, shape, rest[start : start + size])
        start += size
    if start != len(rest):
        raise BadRequest(f"{len(rest) - start} bytes follow the last input: give every binary_data_size")
    outputs = {}
    binary = _parameters("the request", content).get("binary_data_output") is True
    for i, entry in enumerate(_typed("outputs", content.get("outputs") or [], list)):
        name = _typed(f"outputs[{i}].name", _typed(f"outputs[{i}]", entry, dict).get("name"), str)
        outputs[name] = _parameters(f"output {name!r}", entry).get("binary_data", binary) is True
    return Request(_typed("id", content.get("id") or "", str), inputs, outputs, binary)


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> np.ndarray:
    """A tensor of numbers from its bytes, which it shares; raises BadRequest unless they are as many as it needs."""
    dtype = np.dtype(DTYPES[datatype])
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise BadRequest(
            f"input {name!r} of shape {list(shape)} has {len(data)} bytes: "
            f"{datatype} needs {math.prod(shape) * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def check_outputs(outputs: Mapping[str, Any], specs: Sequence[TensorSpec]) -> None:
    """Raises BadRequest for a wanted output that the model does not have."""
    names = [spec.name for spec in specs]
    for name in outputs:
        if name not in names:
            raise BadRequest(f"unknown output {name!r}: {nearest(name, names)}")


def encode(model: str, request: Request, arrays: Arrays, specs: Sequence[TensorSpec]) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON where tensors follow it."""
    wanted = request.outputs or dict.fromkeys(arrays, request.binary)
    datatypes = {spec.name: spec.datatype for spec in specs}
    entries, chunks = [], []
    for name, binary in wanted.items():
        array = arrays[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatypes[name], "shape": list(array.shape)}
        if binary:
            chunks.append(_to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        elif array.dtype == object:
            entry["data"] = [value.decode() for value in array.ravel()]
        else:
            entry["data"] = np.ascontiguousarray(array).reshape(-1)
        entries.append(entry)
    content = {"model_name": model, "id": request.id, "outputs": entries}
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([text, *chunks]), len(text) if chunks else None


def _to_bytes(array: np.ndarray) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel())


def _from_list(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> np.ndarray:
    dtype = np.dtype(DTYPES[datatype])
    try:
        array = np.array(_typed(f"data of input {name!r}", data, list))
    except ValueError:
        raise BadRequest(f"data of input {name!r} is ragged: send a flat list") from None
    if array.size != math.prod(shape):
        raise BadRequest(f"input {name!r} of shape {list(shape)} has {array.size} elements")
    if array.size and array.dtype.kind not in _KINDS[dtype.kind]:
        raise BadRequest(f"data of input {name!r} is not all {datatype}: send nothing else")
    with np.errstate(over="ignore"):  # to infinity, which no model takes
        return array.astype(dtype).reshape(shape)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(n) is not int or n < 0 for n in value):
        raise BadRequest(f"input {name!r} has shape {str(value)[:80]}: send a list of sizes")
    if len(value) > MOST_AXES or math.prod(max(n, 1) for n in value) > MOST_ELEMENTS:
        raise BadRequest(f"input {name!r} has shape {str(value)[:80]}: that is too large for a tensor")
    return tuple(value)


def _parameters(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return _typed(f"parameters of {where}", entry.get("parameters") or {}, dict)


def _typed(where: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        wanted = {dict: "an object", list: "a list", str: "a string"}[kind]
        raise BadRequest(f"{where}: {wanted} is needed, not {str(value)[:80]!r}")
    return value
