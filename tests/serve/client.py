"""Sending exchanges: to an ASGI application in this process, or over a connection, slowly where that is asked for."""

import asyncio
from typing import NamedTuple

from rdfa.serve.gate import App
from tests.serve.traffic import Exchange

PIECES = 3  # of a body with pauses


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


async def call(app: App, exchange: Exchange, method: str = "POST", path: str = "") -> Answer:
    """Through an application, as a server would."""
    headers = [(name.encode(), value.encode()) for name, value in _headers(exchange).items()]
    path = path or f"/v2/models/{exchange.model}/infer"
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    pieces = _pieces(exchange)
    sent = []

    async def receive():
        if not pieces:
            await asyncio.Event().wait()  # the client stays
        await asyncio.sleep(exchange.pause)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    start, *parts = sent
    assert [part.get("more_body", False) for part in parts] == [True] * (len(parts) - 1) + [False]
    body = b"".join(part["body"] for part in parts)
    return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body)


async def post(port: int, exchange: Exchange) -> Answer:
    """Over a connection of its own; raises OSError or EOFError where the server does not answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = [f"POST /v2/models/{exchange.model}/infer HTTP/1.1", "host: test", "connection: close"]
        head += [f"{name}: {value}" for name, value in _headers(exchange).items()]
        writer.write("\r\n".join([*head, "", ""]).encode())
        answer = asyncio.ensure_future(_read(reader))
        for piece in _pieces(exchange):
            await asyncio.wait([answer], timeout=exchange.pause)
            if answer.done():
                break
            writer.write(piece)
            await writer.drain()
        return await answer
    finally:
        writer.close()


def _headers(exchange: Exchange) -> dict[str, str]:
    return {"content-length": str(len(exchange.body)), **exchange.headers}


def _pieces(exchange: Exchange) -> list[bytes]:
    step = -(-len(exchange.body) // (PIECES if exchange.pause else 1))
    return [exchange.body[at : at + step] for at in range(0, len(exchange.body), step)]


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return Answer(int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"])))
