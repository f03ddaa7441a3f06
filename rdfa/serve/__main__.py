"""Serve an artifact over the Open Inference Protocol, HTTP and gRPC.

    python -m rdfa.serve --artifact OUT
    python -m rdfa.serve --artifact OUT --http_port 8000 --grpc_port 8001 --max_batch 16 --timeout 10

Any client of the protocol (KServe v2; Triton's clients speak it) finds two models:

    detections   features FP32 [time, channels] of one video as its file has them, fps FP64 [1], duration FP64 [1]
                 -> segments FP32 [n, 2] in seconds, scores FP32 [n], labels INT64 [n], label_names BYTES [n]
    detector     features FP32 [batch, channels, time] and mask BOOL [batch, time], padded as the artifact asks for
                 -> cls_logits, offsets, point_mask, as the exported graph gives them

duration may be left out, fps where the artifact knows it. Results are those of rdfa.detect, up to the rounding of a
batch: videos of equal padded length are computed together. GET /metrics has Prometheus metrics.

A request that is refused gets one line, {"error": "..."}: 400 what is wrong with it, 404 no such model, 408 it arrived
too slowly, 413 it is too large, 415 it is compressed, 503 with Retry-After when --queue requests are being answered,
504 not computed within --timeout. On SIGTERM no connection is taken any more, accepted requests are answered, and the
command exits 0.

The server listens on all interfaces, without encryption or passwords: put it behind something that has them. It keeps
up to --queue requests of up to --max_request_mb in memory; over gRPC, messages are read before they are counted.

Exit codes: 0 stopped by a signal; 1 the server could not start; 2 wrong invocation.
"""

import argparse
import importlib.util
import math
import socket
import sys

from rdfa import cli
from rdfa.errors import RunError, UsageError
from rdfa.inference.detectors import BACKENDS, open_artifact
from rdfa.runtime import manifest as manifests


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    if importlib.util.find_spec("kserve") is None:
        raise UsageError("the server stands on kserve, which is not installed: pip install 'rdfa-s6[server]'")
    spec = manifests.read(args.artifact)["features"]
    source = open_artifact(args.artifact, args.backend)
    for flag, port in (("--http_port", args.http_port), ("--grpc_port", args.grpc_port)):
        if port is not None:
            _check_free(flag, port)
    from rdfa.serve.kserve_app import serve
    from rdfa.serve.service import Limits, Service

    service = Service(source, spec, Limits(args.max_batch, args.queue, args.timeout, args.max_request_mb * 2**20))
    service.warm_up()
    addresses = f"http port {args.http_port}" + (f", grpc port {args.grpc_port}" if args.grpc_port else "")
    print(f"serving {args.artifact} ({source.identity['backend']}): {addresses}", flush=True)
    serve(service, args.http_port, args.grpc_port)


def _check_free(flag: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise RunError(f"{flag} {port}: {error.strerror}; choose another port") from error


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m rdfa.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", required=True, metavar="OUT", help="artifact directory, written by export.py")
    parser.add_argument("--backend", choices=BACKENDS, help="what runs it (default: the first that can)")
    parser.add_argument("--http_port", type=int, default=8080, metavar="N", help="default 8080")
    parser.add_argument("--grpc_port", type=int, metavar="N", help="default: no gRPC")
    parser.add_argument("--max_batch", type=int, default=8, metavar="n", help="videos computed together (default 8)")
    parser.add_argument("--queue", type=int, default=64, metavar="n", help="requests accepted at a time (default 64)")
    parser.add_argument("--timeout", type=float, default=30, metavar="S", help="seconds of a request (default 30)")
    parser.add_argument("--max_request_mb", type=int, default=256, metavar="n", help="MiB of a request (default 256)")
    args = parser.parse_args(argv)
    for name in ("max_batch", "queue", "max_request_mb"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}: give at least 1")
    for name in ("http_port", "grpc_port"):
        port = getattr(args, name)
        if port is not None and not 0 < port < 2**16:
            raise UsageError(f"--{name} {port}: give a port, 1 to {2**16 - 1}")
    if not 0 < args.timeout < math.inf:
        raise UsageError(f"--timeout {args.timeout}: give a positive number of seconds")
    return args


if __name__ == "__main__":
    sys.exit(cli.run(main))
