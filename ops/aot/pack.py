"""The file of compiled kernels: a readable index, then the binaries, each compressed.

    8 bytes          magic "RDFACUB\\0"
    3 x uint32       version, bytes of the index, its Adler-32 (little endian, as all numbers)
    index            lines of words:
                         triton VERSION
                         number NAME VALUE
                         scan-tile ROWS LANES STEPS WAVE_2 WAVE_4
                         conv-tile NAME CHANNELS TIMES STEPS WIDTH
                         kernel NAME ENTRY WARPS SHARED PARAMETER:KIND ...
                         cubin CAPABILITY OFFSET SIZE LENGTH         of the kernel above; `ptx` likewise
    binaries         zlib streams; OFFSET from the end of the index, SIZE compressed, LENGTH not

``csrc/gpu/pack.cpp`` reads it; this module reads it only to be tested.
"""

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from ops.aot import variants
from ops.aot.compiler import Kernel

MAGIC = b"RDFACUB\0"
VERSION = 1
_HEADER = struct.Struct("<8sIII")


def write(path: Path, triton_version: str, kernels: Iterable[tuple[str, Kernel]]) -> None:
    """Write the pack of kernels by name, whole or not at all."""
    lines = [f"triton {triton_version}"]
    lines += [f"number {name} {value!r}" for name, value in variants.constants().items()]
    lines += [f"scan-tile {' '.join(map(str, tile))}" for tile in variants.scan_tiles()]
    lines += [f"conv-tile {name} {' '.join(map(str, tile))}" for name, tile in variants.conv_tiles().items()]
    contents: dict[bytes, int] = {}  # equal ones are written once
    end = 0
    for name, kernel in kernels:
        parameters = " ".join(f"{parameter}:{kind}" for parameter, kind in kernel.parameters)
        lines.append(f"kernel {name} {kernel.entry} {kernel.warps} {kernel.shared} {parameters}")
        for kind, capability, binary in kernel.binaries:
            compressed = zlib.compress(binary, 9)
            if compressed not in contents:
                contents[compressed] = end
                end += len(compressed)
            lines.append(f"{kind} {capability} {contents[compressed]} {len(compressed)} {len(binary)}")
    index = "".join(f"{line}\n" for line in lines).encode("ascii")
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(_HEADER.pack(MAGIC, VERSION, len(index), zlib.adler32(index)))
        file.write(index)
        file.writelines(contents)
    os.replace(temporary, path)


def read(path: Path) -> dict[str, Kernel]:
    """The kernels of a pack by name."""
    content = path.read_bytes()
    magic, version, size, checksum = _HEADER.unpack_from(content)
    index = content[_HEADER.size : _HEADER.size + size]
    if (magic, version, checksum) != (MAGIC, VERSION, zlib.adler32(index)):
        raise ValueError(f"{path} is no pack of version {VERSION}")
    kernels: dict[str, Kernel] = {}
    for line in index.decode("ascii").splitlines():
        word, *rest = line.split()
        if word == "kernel":
            name, entry, warps, shared, *parameters = rest
            pairs = tuple(tuple(parameter.split(":")) for parameter in parameters)
            kernels[name] = kernel = Kernel(entry, int(warps), int(shared), pairs)
        elif word in ("cubin", "ptx"):
            capability, offset, size_, _ = map(int, rest)
            start = _HEADER.size + size + offset
            kernel.binaries.append((word, capability, zlib.decompress(content[start : start + size_])))
    return kernels
