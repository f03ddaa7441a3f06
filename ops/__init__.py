"""Operators of RDFA-S6, usable alone: a selective scan, a causal convolution, and 1-D NMS for temporal detection.

    from ops import selective_scan, causal_conv1d, nms, decode_nms

C++ kernels on the CPU where the native library is built (``python -m ops.build``), Triton kernels on a GPU, plain
PyTorch elsewhere. `bidirectional_conv1d` and `bidirectional_scan` do all of an FA-Bi-S6 block in one launch each.
`onnx_export` writes a model that calls them as an ONNX file. The functions hide the packages of the same name; reach
those with ``from ops.selective_scan.reference import ...``.
"""

import importlib.util

# Without torch nothing works but `python -m ops.build`, which must live to say so.
if importlib.util.find_spec("torch") is not None:
    from ops import library
    from ops.causal_conv1d.bidirectional import bidirectional_conv1d
    from ops.causal_conv1d.op import causal_conv1d
    from ops.nms.op import decode_nms, nms
    from ops.onnx import onnx_export
    from ops.selective_scan.bidirectional import bidirectional_scan
    from ops.selective_scan.op import selective_scan

    __all__ = [
        "bidirectional_conv1d",
        "bidirectional_scan",
        "causal_conv1d",
        "decode_nms",
        "library",
        "nms",
        "onnx_export",
        "selective_scan",
    ]
