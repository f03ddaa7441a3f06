"""What torch does with the operators: opcheck, compile, export, trace, autograd's rules, errors, dispatch."""

import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing

from ops import library, selective_scan
from ops.selective_scan import op
from ops.selective_scan.reference import selective_scan_reference
from tests.ops.selective_scan.cases import channels_last, contiguous, make, output_gradients, run


@pytest.fixture(autouse=True)
def _needs_the_library():
    library.require()


class Scan(torch.nn.Module):
    def __init__(self, reverse=False):
        super().__init__()
        tensors = make((1, 6, 4, 1))
        for name in ("A", "D", "delta_bias"):
            self.register_parameter(name, torch.nn.Parameter(tensors[name]))
        self.reverse = reverse

    def forward(self, u, delta, B, C, z):
        return selective_scan(u, delta, self.A, B, C, self.D, z, self.delta_bias, True, False, self.reverse)


def sequences(length, batch=2, layout=contiguous, seed=0):
    tensors = make((batch, 6, 4, length), layout=layout, seed=seed)
    return [tensors[k] for k in ("u", "delta", "B", "C", "z")]


CASES = {
    "all": ((2, 17, 3, 20), "BNL", {}),
    "channels_last": ((2, 17, 3, 20), "BLN", {"layout": channels_last}),
    "groups": ((2, 6, 3, 20), "BGNL", {"groups": 2}),
    "constant": ((2, 6, 3, 20), "DN", {"without": ("z",)}),
    "bare_bf16": ((1, 5, 16, 33), "BNL", {"dtype": torch.bfloat16, "without": ("D", "z", "delta_bias")}),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["selective_scan", "selective_scan_train"])
def test_opcheck(name, case, requires_grad):
    shape, kind, options = CASES[case]
    inputs = [t if t is None else t.requires_grad_(requires_grad) for t in make(shape, kind, **options).values()]
    torch.library.opcheck(getattr(torch.ops.rdfa, name).default, (*inputs, True, True))


@pytest.mark.parametrize("case", CASES)
def test_opcheck_backward(case):
    shape, kind, options = CASES[case]
    inputs = list(make(shape, kind, **options).values())
    states = torch.ops.rdfa.selective_scan_train(*inputs, True, False)[2]
    dy, dstate = output_gradients(shape, options.get("dtype", torch.float32))
    for given in (dstate, None):
        torch.library.opcheck(torch.ops.rdfa.selective_scan_backward.default, (dy, given, *inputs, states, True, False))


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_compile_once_for_every_length(layout):
    module, counter = Scan(), torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for length in (33, 20, 47):
        inputs = [x.requires_grad_() for x in sequences(length, layout=layout)]
        y, expected = compiled(*inputs), module(*inputs)
        assert torch.equal(y, expected) and y.stride() == expected.stride()
        leaves = [*inputs, *module.parameters()]
        for g, e in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)):
            assert torch.equal(g, e)
    assert counter.frame_count == 1
    with torch.no_grad():
        assert torch.equal(compiled(*sequences(20)), module(*sequences(20)))


def test_export_records_the_one_operator():
    module = Scan()  # its parameters require gradients, and the graph must not depend on that
    exported = torch.export.export(
        module, tuple(sequences(32)), dynamic_shapes=[{0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}] * 5
    )
    called = {str(n.target) for n in exported.graph.nodes if "rdfa" in str(n.target)}
    assert called == {"rdfa.selective_scan.default"}
    inputs = sequences(45, batch=3)
    assert torch.equal(exported.module()(*inputs), module(*inputs))


LOAD_AND_RUN = """
import sys, torch
torch.ops.load_library(sys.argv[1])
module = torch.jit.load(sys.argv[2])
inputs, expected = torch.load(sys.argv[3])
assert torch.equal(module(*inputs), expected)
assert "rdfa" not in sys.modules and "ops" not in sys.modules
"""


@pytest.mark.parametrize("requires_grad", [False, True])
def test_trace_save_load(tmp_path, requires_grad):
    module = Scan(reverse=True).requires_grad_(requires_grad)
    traced = torch.jit.trace(module, sequences(32))
    assert "rdfa::selective_scan(" in str(traced.inlined_graph)
    traced.save(tmp_path / "scan.pt")
    inputs = sequences(45, batch=3)
    torch.save((inputs, module(*inputs).detach()), tmp_path / "expected.pt")
    arguments = [str(library.path()), str(tmp_path / "scan.pt"), str(tmp_path / "expected.pt")]
    subprocess.run([sys.executable, "-c", LOAD_AND_RUN, *arguments], check=True, cwd=tmp_path)


def test_gradients_of_the_plain_operator_equal_those_of_the_training_one():
    shape = (2, 17, 5, 20)
    tensors, (dy, dstate) = make(shape), output_gradients(shape)

    def plain(*arguments, return_last_state, reverse):
        return torch.ops.rdfa.selective_scan(*arguments, reverse)

    expected = run(selective_scan, tensors, dy, dstate)
    for name, value in run(plain, tensors, dy, dstate).items():
        assert torch.equal(value, expected[name]), name


def test_only_the_asked_gradients():
    tensors = make((2, 5, 3, 7))
    tensors["z"].requires_grad_()
    selective_scan(*tensors.values()).sum().backward()
    assert tensors["z"].grad is not None and all(t.grad is None for k, t in tensors.items() if k != "z")


def test_second_derivatives_are_refused():
    tensors = {k: t.requires_grad_() for k, t in make((1, 3, 2, 4)).items()}
    y = selective_scan(*tensors.values())
    (gradient,) = torch.autograd.grad(y.sum(), tensors["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"ops\.selective_scan\.reference"):
        gradient.sum().backward()


def test_dispatch(monkeypatch):
    """float32, bfloat16 and float16 run the kernels, other dtypes the reference."""
    called = []
    monkeypatch.setattr(op, "selective_scan_reference", lambda *a: called.append(a[0].dtype) or a[0])
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        selective_scan(*make((1, 3, 2, 4), dtype=dtype).values())
    assert called == [torch.float64]


@pytest.mark.parametrize("reverse", [False, True])
def test_float16_runs_the_kernels_in_float32(reverse):
    tensors = make((2, 5, 3, 19), dtype=torch.float16)
    how = {"delta_softplus": True, "reverse": reverse}
    y, state = selective_scan(*tensors.values(), return_last_state=True, **how)
    wide = selective_scan(*(t.float() for t in tensors.values()), return_last_state=True, **how)
    assert y.dtype == torch.float16 and torch.equal(y, wide[0].half())
    assert state.dtype == torch.float32 and torch.equal(state, wide[1])
    tensors = {name: t.requires_grad_() for name, t in tensors.items()}
    gradients = torch.autograd.grad(selective_scan(*tensors.values(), **how).sum(), tensors.values())
    assert [g.dtype for g in gradients] == [t.dtype for t in tensors.values()]
    assert all(g.isfinite().all() for g in gradients)


def test_without_the_library_the_reference_runs(monkeypatch):
    monkeypatch.setattr(library, "_problem", "not built")
    tensors = make((1, 3, 2, 4))
    with pytest.warns(UserWarning, match="ops.build") if not library._warned else torch.no_grad():
        y, state = selective_scan(*tensors.values(), return_last_state=True)
    expected = selective_scan_reference(*tensors.values(), return_last_state=True)
    assert torch.equal(y, expected[0]) and torch.equal(state, expected[1])


WRONG = {
    "u": (lambda t: t[0], ValueError),
    "delta": (lambda t: t[:, :, 1:], ValueError),
    "A": (lambda t: t[:, :0], ValueError),
    "B": (lambda t: t[:, None].expand(-1, 4, -1, -1), ValueError),
    "C": (lambda t: t[:1], ValueError),
    "D": (lambda t: t[1:], ValueError),
    "z": (lambda t: t[:, :, :1], ValueError),
    "delta_bias": (lambda t: t[None], ValueError),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes(name):
    wrong, error = WRONG[name]
    tensors = make((2, 6, 3, 5))
    tensors[name] = wrong(tensors[name])
    with pytest.raises(error, match=rf"^{name} has shape \[.*\]: expected [^\n]*$"):
        selective_scan(*tensors.values())
    with pytest.raises(RuntimeError, match=f"{name} has shape"):  # also where the operator is called by itself
        torch.ops.rdfa.selective_scan(*tensors.values(), False, False)


def test_too_many_states():
    tensors = make((1, 5, 257, 2))
    with pytest.raises(ValueError, match=r"A has shape .*: expected .*256"):
        selective_scan(*tensors.values())


def test_different_groups():
    tensors = make((1, 12, 3, 5), "BGNL", groups=2) | {"C": make((1, 12, 3, 5), "BGNL", groups=3)["C"]}
    with pytest.raises(ValueError, match="B has 2 groups and C has 3"):
        selective_scan(*tensors.values())


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("A", lambda t: t.to(torch.complex64), "A is complex: .* real"),
        ("B", lambda t: t.to(torch.complex64), "B is complex: .* real"),
        ("u", lambda t: t.long(), "u is torch.int64: expected"),
        ("z", lambda t: t.numpy(), "z is ndarray: expected a tensor"),
    ],
)
def test_wrong_types(name, change, message):
    tensors = make((1, 6, 3, 5))
    tensors[name] = change(tensors[name])
    with pytest.raises(TypeError, match=message):
        selective_scan(*tensors.values())


def test_wrong_device():
    tensors = make((1, 6, 3, 5))
    tensors["z"] = tensors["z"].to("meta")
    with pytest.raises(ValueError, match="z is on meta, u on cpu"):
        selective_scan(*tensors.values())
