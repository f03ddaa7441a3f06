"""The file of kernels: what Python writes the library's C++ reads, and nothing that is damaged."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from ops import library
from ops.aot import pack, variants
from ops.aot.compiler import Kernel
from tests.ops.aot.tools import content

HEADER = 20


def write(path, *binaries, name="kernel"):
    pack.write(path, "3.6.0", [(name, Kernel("entry", 1, 0, (("x_ptr", "p"), ("L", "i")), list(binaries)))])
    return path


def test_round_trip(tmp_path):
    kernel = Kernel(
        "entry", 4, 1024, (("x", "p"), ("n", "i"), ("scratch", "0")), [("cubin", 90, b"abc"), ("ptx", 80, b"")]
    )
    pack.write(tmp_path / "pack", "3.6.0", [("one", kernel), ("two", kernel)])
    assert pack.read(tmp_path / "pack") == {"one": kernel, "two": kernel}


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.binary(max_size=40), st.integers(1, 400)), max_size=12),
    level=st.integers(0, 9),
    strategy=st.sampled_from([zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE]),
)
def test_every_kind_of_compression_is_read(native, tmp_path_factory, pieces, level, strategy):
    path = tmp_path_factory.mktemp("pack") / "pack"
    data = b"".join(piece * times for piece, times in pieces)
    compressor = zlib.compressobj(level, strategy=strategy)
    stream = compressor.compress(data) + compressor.flush()
    write(path, ("cubin", 90, data))
    # The same pack with a stream of another kind in place of its own.
    index = path.read_bytes()[HEADER:].partition(b"cubin ")[0] + f"cubin 90 0 {len(stream)} {len(data)}\n".encode()
    path.write_bytes(struct.pack("<8sIII", pack.MAGIC, pack.VERSION, len(index), zlib.adler32(index)) + index + stream)
    assert content(native, path, "kernel", 90) == data


def test_a_large_binary_is_read(native, tmp_path):
    """Distances of all lengths, and more than one block."""
    words = [str(i * i % 9973).encode() for i in range(100000)]
    data = b" ".join(words)
    assert content(native, write(tmp_path / "pack", ("cubin", 90, data)), "kernel", 90) == data


BINARIES = [("cubin", 80, b"sm_80"), ("cubin", 86, b"sm_86"), ("cubin", 90, b"sm_90"), ("ptx", 80, b"ptx")]


@pytest.mark.parametrize(
    "capability, expected",
    [(80, "sm_80"), (86, "sm_86"), (87, "sm_86"), (89, "sm_86"), (90, "sm_90"), (100, "ptx"), (121, "ptx")],
)
def test_which_binary_a_gpu_gets(native, tmp_path, capability, expected):
    assert content(native, write(tmp_path / "pack", *BINARIES), "kernel", capability).decode() == expected


@pytest.mark.parametrize("capability", [75, 79])
def test_a_gpu_that_is_too_old(native, tmp_path, capability):
    with pytest.raises(
        RuntimeError, match=r"no kernels for this GPU of compute capability 7\.\d, only for 8\.0, 8\.6, 9"
    ):
        content(native, write(tmp_path / "pack", *BINARIES), "kernel", capability)


def whole(path):
    return path.read_bytes()


def with_index(path, change):
    """The pack with another index, as if it had been written so."""
    data = whole(path)
    size = struct.unpack_from("<I", data, 12)[0]
    index = change(data[HEADER : HEADER + size])
    header = struct.pack("<8sIII", pack.MAGIC, pack.VERSION, len(index), zlib.adler32(index))
    return header + index + data[HEADER + size :]


DAMAGES = {
    "empty": (lambda p: b"", "it is no such file"),
    "other file": (lambda p: b"\x7fELF" + whole(p)[4:], "it is no such file"),
    "version": (lambda p: whole(p)[:8] + b"\2" + whole(p)[9:], "it has version 2, this library reads 1"),
    "cut in the index": (lambda p: whole(p)[:60], "it is cut off"),
    "cut in the binaries": (lambda p: whole(p)[:-1], "it is cut off"),
    "bit of the index": (lambda p: whole(p)[:40] + bytes([whole(p)[40] ^ 1]) + whole(p)[41:], "its index is damaged"),
    "bit of a binary": (lambda p: whole(p)[:-9] + bytes([whole(p)[-9] ^ 4]) + whole(p)[-8:], "part is damaged"),
    "bit of a checksum": (lambda p: whole(p)[:-1] + bytes([whole(p)[-1] ^ 1]), "part is damaged"),
    "no such word": (lambda p: with_index(p, lambda i: i + b"fatbin 90 0 1 1\n"), "its index is damaged"),
    "word missing": (lambda p: with_index(p, lambda i: i.replace(b" entry 1 0", b" entry 1")), "its index is damaged"),
    "no number": (lambda p: with_index(p, lambda i: i.replace(b"cubin 90", b"cubin 9x")), "its index is damaged"),
    "offset": (lambda p: with_index(p, lambda i: i.replace(b"cubin 90 0", b"cubin 90 9999")), "it is cut off"),
    "huge size": (lambda p: with_index(p, lambda i: i.replace(b"cubin 90 0 ", b"cubin 90 5 9999")), "it is cut off"),
    "no tiles": (lambda p: with_index(p, lambda i: i.replace(b"scan-tile", b"triton")), "its index is damaged"),
    "binary of no kernel": (lambda p: with_index(p, lambda i: b"cubin 90 0 1 1\n" + i), "its index is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_pack_is_refused_in_one_line(native, tmp_path, name):
    path = write(tmp_path / "librdfa_ops.cubins", ("cubin", 90, b"some machine code" * 9))
    damage, message = DAMAGES[name]
    path.write_bytes(damage(path))
    with pytest.raises(RuntimeError, match=message) as caught:
        content(native, path, "kernel", 90)
    text = str(caught.value)
    assert text.startswith(f"{path} is refused: ") and text.endswith("make it with python -m ops.aot")
    assert "\n" not in text


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_change_of_a_byte_gives_another_binary(native, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("pack") / "pack"
    right = b"some machine code" * 9
    changed = bytearray(whole(write(path, ("cubin", 90, right))))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed[: data.draw(st.integers(0, len(changed)))])
    with pytest.raises(RuntimeError, match="is refused"):
        content(native, path, "kernel", 90)


def test_a_kernel_that_the_pack_lacks(native, tmp_path):
    with pytest.raises(RuntimeError, match="is refused: it lacks the kernel scan; copy it again, or make it"):
        content(native, write(tmp_path / "pack", ("cubin", 90, b"")), "scan", 90)


def test_a_missing_pack(native, tmp_path):
    with pytest.raises(RuntimeError, match=r"pack is missing.*python -m ops\.aot"):
        content(native, tmp_path / "pack", "kernel", 90)


def test_the_pack_beside_the_library_is_whole(native):
    """Every kernel of it, for every target: machine code with the entry that will be asked for, or PTX with it."""
    if not library.pack_path().exists():
        pytest.skip("there is no pack: python -m ops.aot")
    kernels = pack.read(library.pack_path())
    assert set(kernels) == {variant.name for variant in variants.variants()}
    for kernel in kernels.values():
        check_entries(kernel)
    name, kernel = next(iter(kernels.items()))
    for kind, capability, binary in kernel.binaries:
        if kind == "cubin":
            assert content(native, library.pack_path(), name, capability) == binary


def check_entries(kernel):
    assert any(kind == "ptx" for kind, _, _ in kernel.binaries)
    for kind, _, binary in kernel.binaries:
        if kind == "ptx":
            assert f".entry {kernel.entry}(".encode() in binary and binary.endswith(b"\0")
        else:
            machine = struct.unpack_from("<H", binary, 18)[0]
            assert binary.startswith(b"\x7fELF") and machine == 190  # CUDA
            assert f".text.{kernel.entry}\0".encode() in binary
