"""A request from its admission to its answer, whatever protocol brings it: bound, deadline, batch, metrics."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from prometheus_client import Counter, Gauge, Histogram

from rdfa.inference.detectors import Source
from rdfa.serve import models
from rdfa.serve.batching import Batcher
from rdfa.serve.refusals import Busy, Failed, Gone, Late, NotFound, Refusal

# How long a video waits for others of its length: little beside the time that its detection takes.
BATCH_DELAY = 0.002
WARMUPS = 3  # TorchScript specialises itself during its first runs

REQUESTS = Counter("rdfa_requests", "Inference requests by model and HTTP status", ["model", "status"])
ACCEPTED = Gauge("rdfa_accepted_requests", "Requests that are being read, waiting or computed")
REQUEST_SECONDS = Histogram("rdfa_request_seconds", "From a request's admission to its answer", ["model"])
BATCH_VIDEOS = Histogram("rdfa_batch_videos", "Videos computed together", buckets=(1, 2, 4, 8, 16, 32))
BATCH_SECONDS = Histogram("rdfa_batch_seconds", "Detector and decoding of a batch")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """max_videos: of a batch. max_requests: accepted at a time. timeout: seconds. max_bytes: of a request."""

    max_videos: int
    max_requests: int
    timeout: float
    max_bytes: int


class Service:
    """Both models of one artifact. Belongs to one event loop, from the first request on.

    Attributes:
        models: by name.
    """

    def __init__(self, source: Source, spec: Mapping[str, Any], limits: Limits):
        self._source, self._spec, self.limits = source, spec, limits
        served = (models.Detector(source, spec, limits.max_videos), models.Detections(source, spec))
        self.models = {model.name: model for model in served}
        self._batcher = Batcher(self._run, limits.max_videos, BATCH_DELAY)
        self._accepted = 0

    def warm_up(self) -> None:
        """Run the detector at its usual length, so that the first request finds it as fast as the rest."""
        shape = (1, self._spec["dimension"], self._spec["max_seq_len"])
        for _ in range(WARMUPS):
            with torch.inference_mode():
                self._source.runner.forward(torch.zeros(shape), torch.ones(shape[::2], dtype=torch.bool))

    @contextlib.contextmanager
    def admitted(self, name: str) -> Iterator["Admission"]:
        """The life of a request for the model `name`; what it raises is counted, as a `Refusal` in any case.

        Raises:
            NotFound: no such model. Busy: too many requests are accepted already.
        """
        known = name if name in self.models else "unknown"
        status = 500
        try:
            if name not in self.models:
                raise NotFound(f"no model {name!r}: this server has {' and '.join(self.models)}")
            if self._accepted >= self.limits.max_requests:
                raise Busy(f"{self._accepted} requests are being answered, as many as this server accepts: try again")
            self._accepted += 1
            ACCEPTED.inc()
            try:
                with REQUEST_SECONDS.labels(name).time():
                    yield Admission(self, name)
            finally:
                self._accepted -= 1
                ACCEPTED.dec()
            status = 200
        except Refusal as refusal:
            status = refusal.status
            raise
        except asyncio.CancelledError:
            status = Gone.status
            raise
        except Exception as error:
            _log.exception("request for %s failed", known)
            raise Failed("the server failed on this request: its log says why") from error
        finally:
            REQUESTS.labels(known, status).inc()

    def _run(self, jobs: Sequence[models.Job]) -> list[models.Arrays | Exception]:
        BATCH_VIDEOS.observe(sum(job.size for job in jobs))
        with BATCH_SECONDS.time():
            return models.run(self._source, jobs)


class Admission:
    """A request that was let in, and the time that it has from then on."""

    def __init__(self, service: Service, name: str):
        self._service, self._model = service, service.models[name]
        self._deadline = time.monotonic() + service.limits.timeout

    @property
    def remaining(self) -> float:
        """Seconds, not negative."""
        return max(self._deadline - time.monotonic(), 0.0)

    async def infer(self, arrays: dict[str, np.ndarray]) -> models.Arrays:
        """The outputs of the model, all of them.

        Raises:
            BadRequest: the inputs. Late: not computed in time.
        """
        job = await asyncio.to_thread(self._model.prepare, arrays)
        try:
            async with asyncio.timeout(self.remaining):
                return await self._service._batcher.submit(job)
        except TimeoutError:
            timeout = self._service.limits.timeout
            raise Late(f"not computed within {timeout:g} s of its arrival: the server is overloaded") from None
