"""`ops.onnx_export`: code that calls `ops`, as ONNX Runtime runs it."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import ops


class Block(torch.nn.Module):
    """A convolution and a scan, in one direction of time each way."""

    def __init__(self, reverse, last_state=False):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight, self.bias = (torch.randn(*size, generator=generator) for size in ((5, 3), (5,)))
        self.A = -torch.rand(5, 4, generator=generator)
        self.reverse, self.last_state = reverse, last_state

    def forward(self, x, B):
        u = ops.causal_conv1d(x, self.weight, self.bias, activation="silu", reverse=self.reverse)
        return ops.selective_scan(
            u, x, self.A, B, B + 1, self.bias, u, self.bias, True, self.last_state, reverse=self.reverse
        )


def inputs(batch, length):
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(batch, rows, length, generator=generator) for rows in (5, 4))


DYNAMIC = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("time")},) * 2


@pytest.mark.parametrize("reverse", [False, True])
def test_runs_where_there_is_no_ops_at_lengths_that_were_not_traced(tmp_path, reverse):
    block = Block(reverse)
    ops.onnx_export(block, inputs(2, 9), tmp_path / "block.onnx", DYNAMIC, input_names=["x", "B"])
    model = onnx.load(tmp_path / "block.onnx")
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("SelectiveScan") == 1 and kinds.count("Conv") == 1 and "Expand" not in kinds
    session = onnxruntime.InferenceSession(tmp_path / "block.onnx", providers=["CPUExecutionProvider"])
    for size in ((1, 1), (3, 70)):
        x, B = inputs(*size)
        (y,) = session.run(None, {"x": x.numpy(), "B": B.numpy()})
        np.testing.assert_allclose(y, block(x, B).numpy(), rtol=1e-4, atol=1e-5)


def test_the_last_state_is_no_output_of_the_node(tmp_path):
    with pytest.raises(ValueError, match="return_last_state=True: the ONNX operator gives y alone"):
        ops.onnx_export(Block(False, last_state=True), inputs(2, 9), tmp_path / "x.onnx", DYNAMIC)
    assert not (tmp_path / "x.onnx").exists()
    assert Block(False, last_state=True)(*inputs(2, 9))[1].shape == (2, 5, 4)  # outside as ever
