"""Compile ``ops/csrc`` into ``ops/librdfa_ops.so``, the one native library of the operators.

    python -m ops.build             # only what changed
    python -m ops.build --force     # everything
    CXX=g++-13 python -m ops.build
    python -m ops.build --onnxruntime_headers /usr/include/onnxruntime

The library is written against torch's stable ABI (no Python headers, linked with libtorch_cpu only), so that one build
serves every Python and every torch from 2.11 on. Needs GCC 11 or newer and the headers of the installed torch. This
file imports neither torch nor the rest of the package: the build hook of ``setup.py`` runs it by its path.

With the folder of ONNX Runtime's header it also makes ``ops/librdfa_ort.so``, the same scan as an operator library for
ONNX Runtime, for GPUs too. No Python package brings that header; Debian's ``libonnxruntime-dev`` and the archives of
ONNX Runtime's releases do. Whatever its version, from 1.21 on, the library serves ONNX Runtime 1.21 and newer.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "librdfa_ops.so"
ORT_LIBRARY = HERE / "librdfa_ort.so"
SOURCES = HERE / "csrc"
OBJECTS = HERE / "objects"
# Folders of SOURCES: what is compiled for ONNX Runtime alone, and what it shares.
ORT_BINDING, ORT_SHARED = "onnxruntime", ("gpu", "selective_scan")
ORT_HEADER = "onnxruntime_c_api.h"

MINIMUM_TORCH = (2, 11)
# No -ffast-math: linked into a shared object it would switch the whole host process to flush-to-zero.
COMPILE_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    f"-DTORCH_TARGET_VERSION=0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}000000000000",
)


class BuildError(RuntimeError):
    """The library cannot be built; the message says in one line why and what to do."""


def build(force: bool = False) -> Path:
    """Bring ``ops/librdfa_ops.so`` up to date and return its path.

    Objects newer than their source and every header it includes are kept, unless `force`. Safe to run from several
    processes at once. Raises `BuildError` when there is no compiler or no torch, or when compiling fails.
    """
    compiler, torch_dir, command = _toolchain()
    sources = [source for source in sorted(SOURCES.rglob("*.cpp")) if source.parent.name != ORT_BINDING]
    with _lock():
        # Objects of another compiler, torch or set of flags live under another name.
        folder = OBJECTS / _fingerprint(command)
        for other in OBJECTS.iterdir():
            if other.is_dir() and (force or other != folder):
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        objects = [_object(folder, source) for source in sources]
        stale = [(s, o) for s, o in zip(sources, objects) if not _up_to_date(o)]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(lambda pair: _compile(command, *pair), stale))
        if stale or not LIBRARY.exists() or LIBRARY.stat().st_mtime < max(o.stat().st_mtime for o in objects):
            _link(compiler, objects, LIBRARY, "-L" + str(torch_dir / "lib"), "-ltorch_cpu", "-ldl")
    return LIBRARY


def build_for_onnxruntime(headers: Path) -> Path:
    """Make ``ops/librdfa_ort.so`` of the objects that `build` keeps up to date, and return its path.

    Raises `BuildError` as `build` does, and when `headers` does not hold ONNX Runtime's headers.
    """
    if not (headers / ORT_HEADER).is_file():
        raise BuildError(f"{headers} has no {ORT_HEADER}: name the folder that holds it (Debian: libonnxruntime-dev)")
    build()
    compiler, _, command = _toolchain()
    with _lock():
        folder = OBJECTS / _fingerprint(command)
        shared = (source for name in ORT_SHARED for source in sorted((SOURCES / name).glob("*.cpp")))
        objects = [_object(folder, source) for source in shared]
        # The binding is compiled every time: nothing says whether the last one saw the same headers.
        for source in sorted((SOURCES / ORT_BINDING).glob("*.cpp")):
            objects.append(_object(folder, source))
            _compile([*command, f"-I{headers}"], source, objects[-1])
        _link(compiler, objects, ORT_LIBRARY, "-ldl")
    return ORT_LIBRARY


def _toolchain() -> tuple[list[str], Path, list[str]]:
    """The compiler, the folder of torch, and the command that compiles."""
    compiler, torch_dir = _find_compiler(), _find_torch()
    return compiler, torch_dir, [*compiler, *COMPILE_FLAGS, f"-I{SOURCES}", f"-isystem{torch_dir / 'include'}"]


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    OBJECTS.mkdir(exist_ok=True)
    (OBJECTS / ".gitignore").write_text("*\n")
    with open(OBJECTS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _object(folder: Path, source: Path) -> Path:
    return folder / f"{'.'.join(source.relative_to(SOURCES).parts)}.o"


def _find_compiler() -> list[str]:
    requested = os.environ.get("CXX")
    for candidate in [requested] if requested else ["g++", "c++"]:
        words = [candidate] if shutil.which(candidate) else candidate.split()
        if words and shutil.which(words[0]):
            return words
    missing = f"CXX={requested} was not found" if requested else "no C++ compiler (g++) was found"
    raise BuildError(f"{missing}: install GCC 11 or newer, or set CXX to the path of one")


def _find_torch() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError(f"torch is not installed for {sys.executable}: pip install 'torch>=2.11'")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_TORCH:
        raise BuildError(f"torch {version} is too old: pip install 'torch>=2.11'")
    return Path(spec.origin).parent


def _fingerprint(command: list[str]) -> str:
    version = subprocess.run([*command[:1], "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    return hashlib.sha256("\n".join([*command, version, importlib.metadata.version("torch")]).encode()).hexdigest()[:12]


def _up_to_date(target: Path) -> bool:
    """Whether the object is newer than everything that the compiler listed as read for it."""
    listing = target.with_suffix(".d")
    if not (target.exists() and listing.exists()):
        return False
    # As in a makefile: a line goes on behind a backslash, and a space in a name has one before it.
    words = listing.read_text().partition(":")[2].replace("\\\n", " ").replace("\\ ", "\0").split()
    read = [word.replace("\0", " ") for word in words]
    made = target.stat().st_mtime
    return all(os.path.exists(file) and os.stat(file).st_mtime < made for file in read)


def _compile(command: list[str], source: Path, target: Path) -> None:
    temporary = target.with_suffix(f".tmp{os.getpid()}.o")
    _run([*command, "-MMD", "-MF", str(target.with_suffix(".d")), "-c", str(source), "-o", str(temporary)], source.name)
    os.replace(temporary, target)


def _link(compiler: list[str], objects: list[Path], target: Path, *libraries: str) -> None:
    temporary = target.with_suffix(f".tmp{os.getpid()}.so")
    _run([*compiler, "-shared", "-Wl,-s", *map(str, objects), *libraries, "-o", str(temporary)], target.name)
    os.replace(temporary, target)


def _run(command: list[str], what: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.stderr.write(result.stderr)
        raise BuildError(f"{command[0]} failed on {what} (its messages are above); GCC 11 or newer is needed")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ops.build",
        description="Compile the native operators (ops/csrc) into ops/librdfa_ops.so.",
        epilog="example: CXX=g++-13 python -m ops.build --force",
    )
    parser.add_argument("--force", action="store_true", help="recompile everything")
    parser.add_argument(
        "--onnxruntime_headers", type=Path, metavar="DIR", help="also make ops/librdfa_ort.so, with the headers in DIR"
    )
    args = parser.parse_args(argv)
    try:
        print(f"built {build(force=args.force)}")
        if args.onnxruntime_headers:
            print(f"built {build_for_onnxruntime(args.onnxruntime_headers)}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
