"""The HTTP requests that are let in, and the path of those that infer.

The model server answers health, metadata and metrics. Inference goes past its own path, which turns binary tensors into
Python lists (6 s for one video of THUMOS14) and reads a body whole before anything is known of it. Its paths for other
protocols and for unloading models are closed.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from rdfa.serve import wire
from rdfa.serve.refusals import Encoded, Gone, NotFound, Refusal, SlowBody, TooLarge
from rdfa.serve.service import Admission, Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

INFER = re.compile(r"/v2/models/([^/]+)/infer")
PASSED_ON = re.compile(r"/|/metrics|/v2(/health/(live|ready)|/models(/[^/]+(/ready)?)?)?")
JSON_LENGTH = "inference-header-content-length"


class Gate:
    """An ASGI application around the model server's."""

    def __init__(self, app: App, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and PASSED_ON.fullmatch(path):
            return await self._app(scope, receive, send)
        incoming = _Incoming(receive)
        try:
            infer = INFER.fullmatch(path) if method == "POST" else None
            if not infer:
                raise NotFound(f"no {method} {path[:200]} here: inference is POST /v2/models/MODEL/infer")
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            body, json_length = await self._infer(infer[1], headers, incoming)
            await _send_answer(send, body, json_length)
        except Gone:
            return
        except Refusal as refusal:
            await _send_refusal(send, refusal, incoming, self._service.limits.timeout)

    async def _infer(self, name: str, headers: dict[str, str], incoming: "_Incoming") -> tuple[bytes, int | None]:
        with self._service.admitted(name) as admission:
            model = self._service.models[name]
            if "content-encoding" in headers:
                raise Encoded(f"content-encoding {headers['content-encoding']!r}: send the request uncompressed")
            body = await self._read(headers.get("content-length"), incoming, admission)
            request = await asyncio.to_thread(wire.decode, body, headers.get(JSON_LENGTH))
            wire.check_outputs(request.outputs, model.outputs)
            arrays = await _unless_disconnected(admission.infer(request.inputs), incoming)
            return await asyncio.to_thread(wire.encode, name, request, arrays, model.outputs)

    async def _read(self, content_length: str | None, incoming: "_Incoming", admission: Admission) -> bytearray:
        limits, body = self._service.limits, bytearray()
        too_large = TooLarge(f"the request is larger than {limits.max_bytes} bytes, the most that this server takes")
        if content_length is not None and int(content_length) > limits.max_bytes:
            raise too_large
        try:
            async with asyncio.timeout(admission.remaining):
                while not incoming.complete:
                    body += await incoming.next()
                    if len(body) > limits.max_bytes:
                        raise too_large
        except TimeoutError:
            raise SlowBody(f"the request did not arrive within {limits.timeout:g} s: send it faster") from None
        return body


class _Incoming:
    """The body of a request as it arrives."""

    def __init__(self, receive: Receive):
        self._receive, self.complete = receive, False

    async def next(self) -> bytes:
        """Its next bytes, or, when it is complete, nothing for as long as the client stays; raises Gone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone("the client has left")
        self.complete = not message.get("more_body", False)
        return message.get("body", b"")


async def _unless_disconnected(answer: Awaitable[Any], incoming: _Incoming) -> Any:
    """The result of `answer`, which is given up when the client goes."""
    task, gone = asyncio.ensure_future(answer), asyncio.ensure_future(incoming.next())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone("the client has left")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)  # no one else looks at what they raise


async def _send_answer(send: Send, body: bytes, json_length: int | None) -> None:
    kind = b"application/json" if json_length is None else b"application/octet-stream"
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    if json_length is not None:
        headers.append((JSON_LENGTH.encode(), b"%d" % json_length))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_refusal(send: Send, refusal: Refusal, incoming: _Incoming, patience: float) -> None:
    """A client that is still sending its body, and would not read a closed connection, gets `patience` seconds."""
    body = orjson.dumps({"error": refusal.message})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not incoming.complete})
    if not incoming.complete:
        with contextlib.suppress(TimeoutError, Gone):
            async with asyncio.timeout(patience):
                while not incoming.complete:
                    await incoming.next()
        await send({"type": "http.response.body", "body": b""})
