"""Opening what can detect: an artifact or a run, with everything else that detection takes from them."""

import hashlib
import json
from typing import NamedTuple

import torch

from rdfa import config, runtime
from rdfa.config import Config
from rdfa.errors import UsageError
from rdfa.inference.pipeline import Runner, run_module, run_session
from rdfa.run_dir import RunDirectory, load_detector

# Of an artifact; the first that can run is the default.
BACKENDS = ("torchscript", "onnxruntime", "openvino", "aoti", "eager")


class Source(NamedTuple):
    """A detector, the configuration it was made with, and the names of the classes, as far as they are known."""

    runner: Runner
    config: Config
    class_names: dict[int, str]
    identity: dict[str, str]  # what tells this detector from others: its weights, and what runs it


def open_artifact(path: str, backend: str | None, dtype: str = "float32") -> Source:
    """An artifact directory, run by `backend`, or by the first of `BACKENDS` that can; `dtype`: see `runtime.load`.

    Raises:
        UsageError: no artifact, or no backend that can run it here; says why of each.
    """
    if backend is None:
        reasons = runtime.availability(path, dtype)
        backend = next((name for name in BACKENDS if reasons.get(name, "unknown") is None), None)
        if backend is None:
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise UsageError(f"no backend can run {path} here: {why}")
    session = runtime.load(path, backend, device=None, dtype=dtype)
    settings = config.from_text(session.manifest["config"])
    names = {} if settings.dataset.class_agnostic else dict(enumerate(session.manifest["classes"]))
    digest = hashlib.sha256(json.dumps(session.manifest, sort_keys=True).encode()).hexdigest()
    identity = {"artifact": digest, "backend": session.backend, "dtype": session.dtype}
    return Source(run_session(session, settings.model), settings, names, identity)


def open_run(path: str, device: str) -> Source:
    """The averaged weights of a run's best checkpoint, or of its latest where none is the best yet."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch finds no GPU here: use cpu, or auto")
    detector, settings = load_detector(path)
    digest = hashlib.sha256()
    for name, tensor in detector.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    on_gpu = device != "cpu" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    names = {i: str(i) for i in range(settings.dataset.num_classes)} | RunDirectory(path).class_names()
    return Source(
        run_module(detector.to(device)),
        settings,
        names,
        {"weights": digest.hexdigest(), "device": device},
    )
