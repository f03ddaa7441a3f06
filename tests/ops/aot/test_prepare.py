"""The kernels for callers without torch, without a GPU: run by Triton's interpreter."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.ops import triton_tools


def test_interpreted():
    triton_tools.run_interpreted(Path(__file__).with_name("interpreted.py"))
