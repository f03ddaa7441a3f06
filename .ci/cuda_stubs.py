"""Lets a CUDA build of torch run on the CPU without the gigabytes of CUDA libraries that it is linked with.

    VENV/bin/python .ci/cuda_stubs.py

Installs CUDA's runtime, two megabytes, which torch calls when it is loaded. For each other library that is missing it
writes one beside torch's own whose functions all fail; where torch is a CPU build, nothing. Needs gcc and binutils.
"""

import collections
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

NAME = re.compile(r"[A-Za-z_]\w*")


def _read(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _symbols(path: Path, which: str) -> set[tuple[str, str]]:
    """(name, version or "") of the dynamic symbols of a library; which: --defined-only or --undefined-only."""
    found = set()
    for line in _read("nm", "-D", which, str(path)).splitlines():
        name, _, version = line.split()[-1].partition("@")
        found.add((name, version.lstrip("@")))
    return found


def _stub(folder: Path, name: str, symbols: dict[str, set[str]]) -> None:
    """symbols: version -> functions; version "" for those that have none."""
    functions = sorted(set().union(*symbols.values()))
    source = "\n".join(f"int {function}(void) {{ return 1; }}" for function in functions)
    script = folder / f"{name}.map"
    script.write_text("\n".join(f"{v} {{ {' '.join(f'{s};' for s in names)} }};" for v, names in symbols.items() if v))
    command = ["gcc", "-shared", "-fno-builtin", "-w", "-x", "c", "-", f"-Wl,-soname,{name}", "-o", str(folder / name)]
    if script.read_text():
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, input=source, text=True, check=True)
    script.unlink()


def _install_runtime() -> None:
    toolkit = re.compile(r"cuda-toolkit\[.*\]==(\d+\.\d+)\.")
    for requirement in importlib.metadata.requires("torch"):
        if found := toolkit.match(requirement):
            runtime = f"nvidia-cuda-runtime=={found[1]}.*"
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", runtime], check=True)


def main() -> None:
    _install_runtime()
    site_packages = Path(sysconfig.get_path("purelib"))
    folder = site_packages / "torch" / "lib"
    libraries = [path for path in folder.glob("*.so*") if path.is_file()]
    present = {path.name for path in [*libraries, *site_packages.glob("nvidia/**/lib/*.so*")]}
    system = {line.split()[0] for line in _read("ldconfig", "-p").splitlines() if line.startswith("\t")}
    needed = set()
    for path in libraries:
        needed |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", _read("readelf", "-dW", str(path))))
    missing = sorted(needed - present - system)
    if not missing:
        return
    wanted = set().union(*(_symbols(path, "--undefined-only") for path in libraries))
    defined = {name for path in libraries for name, _ in _symbols(path, "--defined-only")}
    of_library = collections.defaultdict(lambda: collections.defaultdict(set))
    for name, version in wanted:
        if name in defined or not NAME.fullmatch(name):
            continue
        # A version of CUDA's libraries is the library's own name; those that have none are found in any library.
        owner = version if version in missing else missing[0] if version in ("", "NVSHMEM") else None
        if owner and not name.startswith(("_Z", "__cxa", "_ITM", "__gmon")):
            of_library[owner][version].add(name)
    for name in missing:
        _stub(folder, name, of_library[name])
    print(f"{len(missing)} CUDA libraries are stubs: {', '.join(missing)}")


if __name__ == "__main__":
    main()
