"""The server under load: mixed requests at once, SIGTERM in the midst of them, and memory over many.

    python -m tests.serve.load --requests 1000 --memory 20000

Needs the extra 'server'. Starts `python -m rdfa.serve` on an artifact of the tiny detector; exits 1 on anything lost,
wrong or untyped, and when memory grew by 1 %.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rdfa.inference.detectors import Source, open_artifact
from tests.deploy.artifacts import tiny_artifact
from tests.serve import client, traffic
from tests.serve.traffic import Exchange

MAX_MB, TIMEOUT, QUEUE = 1, 30.0, 64
STEADY = 2000  # requests until memory is expected to be steady
AT_ONCE = 16


@contextlib.contextmanager
def running(*flags: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server that is ready, and its HTTP port; killed at the end of the block if it still runs."""
    port = free_port()
    command = [sys.executable, "-m", "rdfa.serve", "--artifact", str(tiny_artifact()), "--http_port", str(port)]
    limits = ["--queue", str(QUEUE), "--timeout", str(TIMEOUT), "--max_request_mb", str(MAX_MB)]
    process = subprocess.Popen([*command, *limits, *flags])
    try:
        wait_until_ready(process, port)
        yield process, port
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def wait_until_ready(process: subprocess.Popen, port: int) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode} before it was ready")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
            return
        time.sleep(0.1)
    raise SystemExit("the server is not ready after a minute")


def requests(source: Source, count: int, seed: int = 1, timeout: float = TIMEOUT) -> list[Exchange]:
    """Mixed ones, for a server with that timeout."""
    return list(itertools.islice(traffic.mixed(source, seed, MAX_MB * 2**20, timeout), count))


async def answered(port: int, exchange: Exchange) -> str:
    """What became of a request, which comes again for as long as the server is busy: "right", or what was wrong."""
    while True:
        answer = await client.post(port, exchange)
        if answer.status != 503:
            break
        await asyncio.sleep(int(answer.headers["retry-after"]))
    if answer.status != exchange.status:
        return f"{exchange.kind}: {answer.status} {answer.body[:200]!r}"
    if answer.status != 200:
        (text,) = json.loads(answer.body).values()
        return "right" if text and "\n" not in text else f"{exchange.kind}: {answer.body[:200]!r}"
    return "right" if traffic.right(exchange, answer.body, answer.headers.get(traffic.JSON_LENGTH)) else exchange.kind


def all_at_once(port: int, exchanges: Sequence[Exchange]) -> Counter:
    """What became of the requests."""

    async def run():
        return Counter(await asyncio.gather(*(answered(port, exchange) for exchange in exchanges)))

    return asyncio.run(run())


def stopped(process: subprocess.Popen, port: int, exchanges: Sequence[Exchange], after: float) -> tuple[Counter, int]:
    """Send good requests at once, SIGTERM after so many seconds: what became of each, and how many were under way."""

    async def one(exchange):
        try:
            answer = await client.post(port, exchange)
        except (ConnectionError, EOFError) as error:
            return "not taken" if isinstance(error, ConnectionError) or not error.partial else "lost"
        good = answer.status == 200 and traffic.right(exchange, answer.body, answer.headers.get(traffic.JSON_LENGTH))
        return "right" if good else f"{answer.status} {answer.body[:200]!r}"

    async def run():
        tasks = [asyncio.ensure_future(one(exchange)) for exchange in exchanges]
        await asyncio.sleep(after)
        under_way = sum(not task.done() for task in tasks)
        process.send_signal(signal.SIGTERM)
        return Counter(await asyncio.gather(*tasks)), under_way

    return asyncio.run(run())


def memory_mb(process: subprocess.Popen) -> float:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(process: subprocess.Popen, port: int, exchanges: Sequence[Exchange], count: int) -> list[tuple[int, float]]:
    """(requests, MB) along `count` requests, `AT_ONCE` at a time, after `STEADY` that are not counted."""
    rows = []

    async def run():
        todo = iter(range(STEADY + count))

        async def worker():
            for number in todo:
                if number >= STEADY and (number - STEADY) % max(count // 10, 1) == 0:
                    rows.append((number - STEADY, memory_mb(process)))
                outcome = await answered(port, exchanges[number % len(exchanges)])
                if outcome != "right":
                    raise SystemExit(outcome)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    asyncio.run(run())
    return [*rows, (count, memory_mb(process))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, metavar="n", help="mixed requests at once")
    parser.add_argument("--memory", type=int, default=20000, metavar="n", help="requests over which memory is watched")
    args = parser.parse_args()
    source = open_artifact(str(tiny_artifact()), None)
    failed = False
    with running() as (process, port):
        start = time.perf_counter()
        outcomes = all_at_once(port, requests(source, args.requests))
        print(f"{args.requests} at once: {dict(outcomes)} in {time.perf_counter() - start:.1f} s", flush=True)
        failed |= outcomes["right"] != args.requests
        quick = [e._replace(pause=0.0) for e in requests(source, 500, seed=2) if e.kind != "too_slow"]
        rows = growth(process, port, quick, args.memory)
        for count, size in rows:
            print(f"{count:6} requests: {size:.1f} MB")
        grown = rows[-1][1] / rows[0][1] - 1
        print(f"memory grew by {grown:.2%}", flush=True)
        failed |= grown >= 0.01
        good = [e for e in requests(source, 300, seed=3) if e.status == 200][: QUEUE // 2]
        outcomes, under_way = stopped(process, port, good, after=0.5)
        code = process.wait(TIMEOUT + 10)
        print(f"SIGTERM with {under_way} of {len(good)} under way: {dict(outcomes)}, exit code {code}")
        failed |= not under_way or set(outcomes) - {"right", "not taken"} != set() or code != 0
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
