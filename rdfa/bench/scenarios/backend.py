"""What a scenario drives. A session of `rdfa.runtime` is a backend; so is a client of a server with a `run` like it.

Shapes: B batch, C feature channels, T time steps.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rdfa.runtime.session import Outputs


class Backend(Protocol):
    """A detector that answers.

    Attributes:
        device: where it computes ("cpu", "cuda"), as it found out itself, not as it was told.
    """

    device: str

    def run(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> Outputs:
        """Logits, offsets and point mask of a batch, when they are there; raises what went wrong.

        Called from `Serving.workers` threads, from each with one call at a time.
        """
        ...


@dataclass(frozen=True)
class Serving:
    """How requests of one video reach a backend.

    workers: calls of `run` under way at a time: 1 for a detector in this process, the connections for a remote server.
    max_batch: videos that one call may carry. A worker takes what is waiting, up to this many, and waits for no more.
    """

    workers: int = 1
    max_batch: int = 1
