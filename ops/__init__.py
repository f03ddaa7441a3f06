"""Operators of RDFA-S6, usable alone: a selective scan, a causal convolution, and 1-D NMS for temporal detection.

    from ops import selective_scan, causal_conv1d, nms, decode_nms

C++ kernels on the CPU where the native library is built (``python -m ops.build``), plain PyTorch elsewhere. The
functions hide the packages of the same name; reach those with ``from ops.selective_scan.reference import ...``.
"""

import importlib.util

# Without torch nothing works but `python -m ops.build`, which must live to say so.
if importlib.util.find_spec("torch") is not None:
    from ops import library
    from ops.causal_conv1d.op import causal_conv1d
    from ops.nms.op import decode_nms, nms
    from ops.selective_scan.bidirectional import bidirectional_scan
    from ops.selective_scan.op import selective_scan

    __all__ = ["bidirectional_scan", "causal_conv1d", "decode_nms", "library", "nms", "selective_scan"]
