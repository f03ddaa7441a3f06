"""Export a trained detector: TorchScript, ONNX, the manifest, and the proof that both are right.

manifest = rdfa.deploy.export("RUN", "OUT", formats=["torchscript", "onnx"])
"""

from rdfa.deploy.artifact import DTYPES, FORMATS, export

__all__ = ["DTYPES", "FORMATS", "export"]
