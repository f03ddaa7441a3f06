"""A Mamba-1 model of transformers on the operators of `ops`, and as an ONNX file that takes any length.

    pip install 'rdfa-s6[onnx,transformers]'
    python examples/mamba_to_onnx.py mamba.onnx

The weights are random here; a model of yours changes the same one line, `use_ops`.
"""

import sys
import types

import onnxruntime
import torch
from transformers import MambaConfig, MambaModel
from transformers.models.mamba.modeling_mamba import MambaMixer

import ops


def use_ops(model: torch.nn.Module) -> None:
    """Let every Mamba-1 block of `model` run on `ops`, with its own weights."""
    for module in model.modules():
        if isinstance(module, MambaMixer):
            module.forward = types.MethodType(mix, module)


def mix(self: MambaMixer, hidden_states, cache=None, attention_mask=None, **kwargs):
    """The block over a whole sequence [batch, time, channels]; without cache, hence not for generating text."""
    x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
    x = ops.causal_conv1d(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation=self.activation)
    dt, B, C = (
        self.x_proj(x.transpose(1, 2))
        .transpose(1, 2)
        .split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=1)
    )
    A, delta = -torch.exp(self.A_log.float()), self.dt_proj.weight @ dt
    y = ops.selective_scan(x, delta, A, B, C, self.D, z, self.dt_proj.bias, delta_softplus=True)
    return self.out_proj(y.transpose(1, 2))


class Backbone(torch.nn.Module):
    """token ids [batch, time] -> hidden states [batch, time, channels]"""

    def __init__(self, model: MambaModel):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=False).last_hidden_state


def make(hidden_size: int = 64, num_hidden_layers: int = 2) -> Backbone:
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=hidden_size, num_hidden_layers=num_hidden_layers, vocab_size=100, use_cache=False)
    return Backbone(MambaModel(config)).eval()


def export(backbone: Backbone, path: str) -> None:
    """Traced at 2 sequences of 16 tokens; the file takes any number of any length."""
    dynamic = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time")},)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    ops.onnx_export(backbone, (ids,), path, dynamic, input_names=["ids"], output_names=["hidden_states"])


@torch.no_grad()
def main(path: str) -> None:
    backbone = make()
    sequences = [torch.randint(100, size) for size in ((1, 7), (3, 100), (2, 333))]
    expected = [backbone(ids) for ids in sequences]
    use_ops(backbone)
    export(backbone, path)
    session = onnxruntime.InferenceSession(path)
    for ids, wanted in zip(sequences, expected):
        (found,) = session.run(None, {"ids": ids.numpy()})
        error = (torch.from_numpy(found) - wanted).norm() / wanted.norm()
        print(f"{list(ids.shape)}: relative difference from transformers {error:.1e}")


if __name__ == "__main__":
    main(sys.argv[1])
