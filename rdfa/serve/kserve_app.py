"""The model server that the adapter stands on: KServe's, which brings health, metadata, metrics, gRPC and the drain."""

import logging
import sys
import warnings
from typing import Any

import numpy as np
from grpc import StatusCode
from grpc_interceptor.exceptions import GrpcException

import rdfa
from rdfa.serve import wire
from rdfa.serve.gate import Gate
from rdfa.serve.refusals import BadRequest, Refusal
from rdfa.serve.service import Service

# It reads the command line of whatever imports it, and takes abbreviations of its own flags from it.
_argv, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve import (
        InferInput,
        InferOutput,
        InferRequest,
        InferResponse,
        Model,
        ModelRepository,
        ModelServer,
        model_server,
    )
    from kserve.errors import InvalidInput, ModelNotFound
    from kserve.protocol.dataplane import DataPlane
finally:
    sys.argv = _argv

GRACE = 5  # seconds that a request may need beyond its timeout to be answered while the server stops
GRPC_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    404: StatusCode.NOT_FOUND,
    503: StatusCode.RESOURCE_EXHAUSTED,
    504: StatusCode.DEADLINE_EXCEEDED,
}


def serve(service: Service, http_port: int, grpc_port: int | None) -> None:
    """Answer requests until SIGTERM or SIGINT; then finish those that were accepted, refuse others, and return."""
    # Every refused request would be a traceback in its log; what is the server's fault, the service logs.
    for name, level in (("kserve", logging.CRITICAL), ("kserve.trace", logging.CRITICAL), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(logging.StreamHandler())
    logging.getLogger("uvicorn.access").disabled = True
    warnings.filterwarnings("ignore", "ORJSONResponse is deprecated")  # KServe's use of FastAPI
    for side in ("receive", "send"):
        setattr(model_server.args, f"grpc_max_{side}_message_length", service.limits.max_bytes)
    registry = _Repository()
    server = ModelServer(
        http_port=http_port,
        grpc_port=grpc_port or 0,
        enable_grpc=grpc_port is not None,
        enable_latency_logging=False,
        registered_models=registry,
        grace_period=int(service.limits.timeout) + GRACE,
    )
    server.dataplane = _DataPlane(registry)
    model_server.app.add_middleware(Gate, service=service)
    server.start([_Served(name, service) for name in service.models])


class _Served(Model):
    """A model as KServe wants it: its metadata, and the way of gRPC's requests."""

    def __init__(self, name: str, service: Service):
        super().__init__(name)
        self._service, self._model = service, service.models[name]
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{**spec._asdict(), "shape": list(spec.shape)} for spec in self._model.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{**spec._asdict(), "shape": list(spec.shape)} for spec in self._model.outputs]

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        try:
            with self._service.admitted(self.name) as admission:
                wanted = [output.name for output in payload.request_outputs or ()]
                wire.check_outputs(dict.fromkeys(wanted), self._model.outputs)
                arrays = await admission.infer({value.name: _array(value) for value in payload.inputs})
        except Refusal as refusal:
            code = GRPC_CODES.get(refusal.status, StatusCode.INTERNAL)
            raise GrpcException(status_code=code, details=refusal.message) from refusal
        outputs = []
        for spec in self._model.outputs:
            if not wanted or spec.name in wanted:
                output = InferOutput(spec.name, list(arrays[spec.name].shape), spec.datatype)
                output.set_data_from_numpy(np.ascontiguousarray(arrays[spec.name]))
                outputs.append(output)
        return InferResponse(payload.id, self.name, outputs, use_binary_outputs=True)


def _array(value: InferInput) -> np.ndarray:
    if value.datatype not in wire.READ or any(size < 0 for size in value.shape):
        raise BadRequest(f"input {value.name!r} is {value.datatype} {value.shape}: see the model's metadata")
    try:
        return value.as_numpy()
    except (InvalidInput, OverflowError, TypeError, ValueError) as error:
        raise BadRequest(f"input {value.name!r}: {error}") from error


class _DataPlane(DataPlane):
    def metadata(self) -> dict[str, Any]:
        return {"name": "rdfa-s6", "version": rdfa.__version__, "extensions": ["binary_tensor_data"]}


class _Repository(ModelRepository):
    """Models that no client can unload."""

    def load(self, name: str) -> bool:
        if name not in self.models:
            raise ModelNotFound(name)
        return True

    def unload(self, name: str) -> None:
        """Called by the server too, when it stops: requests that it accepted still need their model."""
