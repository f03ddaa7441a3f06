"""A detector of torch as a backend: numpy in and out like a session of `rdfa.runtime`, or kept on its device.

Shapes: B batch, C feature channels, T time steps.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdfa.runtime.session import Outputs
from rdfa.runtime.torch_device import full_precision
from rdfa.runtime.torch_threads import pinned

# Of inputs and of what is not multiplied, by the dtype of the row.
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,
    "float64": torch.float64,
}


class TorchBackend:
    """`call(features_BCT, mask_BT) -> outputs` with its inputs on one device and in one dtype.

    Attributes:
        device: the type of the device that the outputs of the last call lay on; before the first call, of the inputs.
    """

    def __init__(self, call: Callable[[Tensor, Tensor], Any], device: str, dtype: str, threads: int | None):
        self.device = device
        self._call, self._place, self._dtype, self._threads = call, device, DTYPES[dtype], threads

    def run(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> Outputs:
        """Copies to the device and back are part of it; floating-point outputs are float32, or float64."""
        with pinned(self._threads), full_precision(self._place), torch.inference_mode():
            outputs = self._call(*self._inputs(features_BCT, mask_BT))
            self.device = outputs[0].device.type
            wide = (o if o.dtype in (torch.bool, torch.float64) else o.float() for o in outputs)
            return Outputs(*(o.cpu().numpy() for o in wide))

    def resident(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> Callable[[], None]:
        """A call on inputs that lie on the device already; it returns when the outputs are there, and leaves them."""
        with torch.inference_mode():
            inputs = self._inputs(features_BCT, mask_BT)

        def call() -> None:
            with pinned(self._threads), full_precision(self._place), torch.inference_mode():
                self._call(*inputs)
                if self._place == "cuda":
                    torch.cuda.synchronize()

        return call

    def _inputs(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> tuple[Tensor, Tensor]:
        features = torch.from_numpy(features_BCT).to(self._place, self._dtype)
        return features, torch.from_numpy(mask_BT).to(self._place)
