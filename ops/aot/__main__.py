"""Compile the GPU kernels of the operators ahead of time, into the pack that ``librdfa_ops.so`` finds beside itself.

    python -m ops.aot                                        # ops/librdfa_ops.cubins, for every target
    python -m ops.aot --targets sm_90                        # for Hopper, and PTX for whatever is newer
    python -m ops.aot --output OUT/librdfa_ops.cubins

Needs Triton, and no GPU; takes about ten minutes on two cores the first time, then Triton's cache serves. A cubin
serves its compute capability and the later ones of the same major version (sm_80: 8.0 to 8.9); PTX serves every other
GPU from 8.0 on, compiled by the driver at the first call. A pack made with Triton 3.6 also loads under older drivers.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from ops import library

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


def _targets(text: str) -> list[int]:
    names = text.split(",")
    numbers = [name.removeprefix("sm_") for name in names]
    for name, number in zip(names, numbers):
        if not (number.isdecimal() and name.startswith("sm_") and int(number) >= 80):
            raise argparse.ArgumentTypeError(f"{name!r} is no target: give sm_80 or later, for example {TARGETS[3]}")
    return sorted({int(number) for number in numbers})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ops.aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", type=_targets, default=",".join(TARGETS), help="GPUs to compile for (%(default)s)")
    parser.add_argument("--output", type=Path, default=library.pack_path(), help="file to write (%(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    if not arguments.output.parent.is_dir() or arguments.output.is_dir():
        parser.error(f"--output {arguments.output}: give the name of a file in a folder that exists")
    if importlib.util.find_spec("triton") is None:
        print("error: Triton is not installed: pip install 'triton>=3.6,<3.10'", file=sys.stderr)
        return 1
    from ops.aot.build import build
    from ops.aot.compiler import AotError

    try:
        count = build(arguments.output, arguments.targets, max(1, arguments.jobs), lambda line: print(line, flush=True))
    except (AotError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {count} kernels, {arguments.output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
