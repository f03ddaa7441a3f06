"""One interface to an exported detector, whatever runs it.

Shapes: B batch, C feature channels, T time steps, P points of all pyramid levels (finest first), K classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rdfa.errors import RunError

# That files compute in; inputs and outputs are float32 in any case. int8: the large products, on a CPU.
DTYPES = ("float32", "float16", "bfloat16", "int8")


class Outputs(NamedTuple):
    """What every format returns, under these names and in this order.

    cls_logits: [B,P,K] float32. offsets: [B,P,2] float32, start and end in units of the level's stride.
    point_mask: [B,P] bool, False where the video has ended (logits and offsets are 0 there).
    """

    cls_logits: np.ndarray
    offsets: np.ndarray
    point_mask: np.ndarray


class Node(NamedTuple):
    """A node of a graph, as the runtime ran it.

    path: "kernel" (one of the artifact's native library), "function" (from the body of a function that stands for such
    a kernel) or "standard". provider: execution provider, in the runtime's words. computes: whether it makes floating
    point numbers; the others work on shapes and indices, which runtimes like to do on the host.
    """

    name: str
    operator: str
    path: str
    provider: str
    computes: bool


class Session:
    """A loaded artifact. Made by `rdfa.runtime.load`; not meant to be shared between threads.

    Attributes:
        manifest: the artifact's manifest. backend, device: what runs it, and where. dtype: what it computes in.
    """

    def __init__(
        self, manifest: dict[str, Any], backend: str, device: str, call: Callable[..., Any], dtype: str = "float32"
    ):
        self.manifest, self.backend, self.device, self.dtype = manifest, backend, device, dtype
        self._call = call

    def run(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> Outputs:
        """Logits, offsets and point mask of a batch of padded feature sequences.

        Args:
            features_BCT: float32; C and the multiple that T must be of are in ``manifest["features"]``.
            mask_BT: bool, True on the frames that belong to the video.

        Raises:
            RunError: an input of another type or shape.
        """
        spec = self.manifest["features"]
        _check_array("features", features_BCT, np.float32, 3)
        _check_array("mask", mask_BT, np.bool_, 2)
        batch, channels, time = features_BCT.shape
        if channels != spec["dimension"]:
            raise RunError(f"features have {channels} channels, the detector was trained on {spec['dimension']}")
        if mask_BT.shape != (batch, time):
            raise RunError(f"mask has shape {mask_BT.shape}, the features ask for {(batch, time)}")
        if batch == 0 or not 0 < time <= spec["max_time"] or time % spec["multiple"]:
            raise RunError(
                f"features have shape {features_BCT.shape}: the batch must not be empty, and the time axis must be "
                f"padded to a multiple of {spec['multiple']}, at most {spec['max_time']}"
            )
        return Outputs(*self._call(np.ascontiguousarray(features_BCT), np.ascontiguousarray(mask_BT)))

    def nodes(self) -> list[Node]:
        """The path that each node took, of backend onnxruntime; the others do not tell (an empty list)."""
        return self._call.nodes() if hasattr(self._call, "nodes") else []


def _check_array(name: str, value: Any, dtype: type, rank: int) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != rank:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise RunError(f"{name} must be a numpy array of {np.dtype(dtype).name} with {rank} axes, not {found}")
