"""A server of the Open Inference Protocol as a backend, through Triton's client: `rdfa.serve`, or Triton itself.

    backend = RemoteBackend("http://localhost:8080")        grpc://localhost:8081 over gRPC
    outputs = backend.run(features, mask)

Shapes: B batch, C feature channels, T time steps.
"""

import importlib
import threading
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rdfa.errors import RunError, UsageError
from rdfa.runtime.session import Outputs

# What such a model is called by rdfa.serve, and in the repository that export.py writes for Triton.
MODELS = ("detector", "rdfa_torchscript", "rdfa_onnx")
PROTOCOLS = {"http": "http", "https": "http", "grpc": "grpc", "grpcs": "grpc"}
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.bool_): "BOOL"}
TIMEOUT = 300.0  # seconds of one call: a server with a queue is slower than a detector


class RemoteBackend:
    """A detector behind a URL. `run` may be called from several threads; each has a connection of its own.

    Attributes:
        device: where it computes is the server's secret. model: the name that it was found under.
    """

    device = "remote"

    def __init__(self, url: str, model: str | None = None):
        """
        Args:
            url: http(s)://host:port or grpc(s)://host:port.
            model: its name on the server; None: the first of `MODELS` that is ready there.

        Raises:
            UsageError: no such URL, no server or no such model there, or tritonclient is not installed.
        """
        try:
            parts = urlsplit(url)
            complete = parts.scheme in PROTOCOLS and parts.hostname and parts.port and not parts.path.strip("/")
        except ValueError:  # a port that is no number, or too large
            complete = False
        if not complete:
            raise UsageError(f"--url {url}: give a server as http://HOST:PORT or grpc://HOST:PORT")
        self._protocol, self._secure = PROTOCOLS[parts.scheme], parts.scheme.endswith("s")
        self._url, self._address = url, parts.netloc
        try:
            self._triton = importlib.import_module(f"tritonclient.{self._protocol}")
        except ImportError as error:
            extra = {"http": "client", "grpc": "triton_server"}[self._protocol]
            raise UsageError(f"--url needs tritonclient ({error}): pip install 'rdfa-s6[{extra}]'") from error
        self._local = threading.local()
        self.model, self._outputs = self._find(model)

    def run(self, features_BCT: np.ndarray, mask_BT: np.ndarray) -> Outputs:
        """Logits, offsets and point mask of a batch; raises RunError with what the server says instead."""
        inputs = [self._input("features", features_BCT), self._input("mask", mask_BT)]
        wanted = [self._triton.InferRequestedOutput(name) for name in self._outputs]
        try:
            answer = self._client().infer(self.model, inputs, outputs=wanted)
        except Exception as error:  # whatever a client's network layer raises
            raise RunError(f"{self._url}: {error}") from error
        return Outputs(*(np.array(answer.as_numpy(name)) for name in self._outputs))  # the client's cannot be written

    def _find(self, model: str | None) -> tuple[str, list[str]]:
        """The model's name, and its names of the outputs, to which Triton's PyTorch backend adds their numbers."""
        client = self._client()
        try:
            ready = [name for name in ([model] if model else MODELS) if self._ready(client, name)]
            if not ready:
                raise UsageError(f"{self._url} has no model {model or ' or '.join(MODELS)} that is ready")
            metadata = client.get_model_metadata(ready[0])
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"no server answers at {self._url}: {error}") from error
        if self._protocol == "http":
            names = [output["name"] for output in metadata["outputs"]]
        else:
            names = [output.name for output in metadata.outputs]
        found = {name.partition("__")[0]: name for name in names}
        if missing := [field for field in Outputs._fields if field not in found]:
            raise UsageError(f"model {ready[0]} at {self._url} has no output {missing[0]!r}: it has {', '.join(names)}")
        return ready[0], [found[field] for field in Outputs._fields]

    def _ready(self, client: Any, name: str) -> bool:
        try:
            return client.is_model_ready(name)
        except self._triton.InferenceServerException as error:
            if "NOT_FOUND" in str(error.status()):
                return False
            raise

    def _client(self) -> Any:
        """This thread's: clients must not be shared."""
        if not hasattr(self._local, "client"):
            patience = {"http": {"network_timeout": TIMEOUT, "connection_timeout": TIMEOUT}, "grpc": {}}
            self._local.client = self._triton.InferenceServerClient(
                self._address, ssl=self._secure, **patience[self._protocol]
            )
        return self._local.client

    def _input(self, name: str, values: np.ndarray) -> Any:
        tensor = self._triton.InferInput(name, list(values.shape), DATATYPES[values.dtype])
        tensor.set_data_from_numpy(values)
        return tensor
