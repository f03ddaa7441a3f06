"""Export a trained detector: TorchScript, ONNX, AOTInductor, the manifest, and the proof that all are right.

manifest = rdfa.deploy.export("RUN", "OUT", formats=["torchscript", "onnx"])
"""

from rdfa.deploy.artifact import DEFAULT_DTYPES, DEFAULT_FORMATS, FORMATS, export
from rdfa.deploy.map_gate import MapGate

__all__ = ["DEFAULT_DTYPES", "DEFAULT_FORMATS", "FORMATS", "MapGate", "export"]
