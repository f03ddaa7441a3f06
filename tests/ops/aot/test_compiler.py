"""Compiling without a GPU: what goes into the pack, and what is refused."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from ops import library
from ops.aot import __main__ as command
from ops.aot import build, compiler, pack, variants
from tests.ops.aot.test_pack import check_entries

# Quick to compile.
JOIN, CONVOLUTION = "join", "conv-bf16-time-wide-w4-silu-reverse"


def variant(name):
    (found,) = [variant for variant in variants.variants() if variant.name == name]
    return found


def test_names_are_those_of_one_variant_each():
    names = [variant.name for variant in variants.variants()]
    assert len(set(names)) == len(names) and all(" " not in name for name in names)


def test_a_pack_of_two_kernels_for_several_gpus(tmp_path):
    reported = []
    path = tmp_path / "kernels"
    assert build.build(path, (80, 90, 120), 2, reported.append, {JOIN, CONVOLUTION}.__contains__) == 2
    assert reported == [f"[1/2] {JOIN}", f"[2/2] {CONVOLUTION}"]
    kernels = pack.read(path)
    assert set(kernels) == {JOIN, CONVOLUTION}
    for kernel in kernels.values():
        check_entries(kernel)
        kinds = [(kind, capability) for kind, capability, _ in kernel.binaries]
        assert kinds == [("cubin", 80), ("cubin", 90), ("cubin", 120), ("ptx", 80)]
        assert kernel.warps == 4 and kernel.parameters[-2:] == (("global_scratch", "0"), ("profile_scratch", "0"))
    assert [name for name, kind in kernels[JOIN].parameters if kind == "p"] == ["h_ptr", "sum_ptr", "A_ptr"]
    # A wide access is promised by the alignment of its pointers, which the library checks.
    assert b"st.global.v4.b32" in kernels[CONVOLUTION].binaries[-1][2]


def test_a_target_that_the_assembler_does_not_know():
    with pytest.raises(compiler.AotError, match=r"ptxas fails for sm_99 \(.*\): leave the target out"):
        compiler.compile_launch(variant(JOIN).record(), [99])


def test_a_kernel_with_other_parameters_than_triton_passed_so_far(monkeypatch):
    """Triton may add one, as it once added its scratch pointers: the library must not launch with too few."""
    launch = variant(JOIN).record()
    monkeypatch.setattr(compiler, "_specialise", lambda launch, real=compiler._specialise: (*real(launch)[:3], []))
    with pytest.raises(compiler.AotError, match="join_segments_kernel has other parameters than were passed to it"):
        compiler.compile_launch(launch, [90])


def test_a_launch_that_the_library_does_not_do():
    launch = variant(JOIN).record()
    with pytest.raises(compiler.AotError, match="needs a launch that the library does not know"):
        compiler.compile_launch(replace(launch, options=launch.options | {"launch_cooperative_grid": True}), [90])


@pytest.mark.parametrize("targets", ["90", "sm_75", "sm_90,", "gfx942", ""])
def test_wrong_targets(targets, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--targets", targets])
    assert caught.value.code == 2 and "is no target: give sm_80 or later" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["", "nowhere/kernels"])
def test_a_place_that_cannot_take_the_pack_is_told_before_compiling(tmp_path, monkeypatch, capsys, output):
    monkeypatch.setattr(build, "build", lambda *arguments: pytest.fail("compiled"))
    with pytest.raises(SystemExit) as caught:
        command.main(["--output", str(tmp_path / output)])
    assert caught.value.code == 2 and "a file in a folder that exists" in capsys.readouterr().err


def test_targets_are_sorted_and_single():
    assert command._targets("sm_120,sm_90,sm_90") == [90, 120]


def test_without_triton_one_line(monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main([]) == 1
    assert capsys.readouterr().err.startswith("error: Triton is not installed: pip install")


def test_an_error_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    def fail(*arguments):
        raise compiler.AotError("ptxas fails")

    monkeypatch.setattr(build, "build", fail)
    assert command.main(["--output", str(tmp_path / "kernels")]) == 1
    assert capsys.readouterr().err == "error: ptxas fails\n" and list(tmp_path.iterdir()) == []


def test_the_pack_lies_beside_the_library():
    assert library.pack_path().parent == library.path().parent
    assert library.pack_path().name == "librdfa_ops.cubins"


def test_recording_launches_nothing_and_gives_the_kernels_back():
    from ops.causal_conv1d import triton_kernels

    before = triton_kernels.forward_kernel
    x = torch.zeros(1, 4, 8)
    with compiler.recorded() as launches:
        launched = variants.conv.forward(x, torch.zeros(4, 2), None, True, False)
    assert launched.shape == x.shape and triton_kernels.forward_kernel is before
    (launch,) = launches
    assert launch.arguments["L"] == 8 and launch.arguments["WIDTHS"] == (2,) and launch.options["num_warps"] == 4
