"""What a figure was measured on. A result file carries this description; it holds no path, user or host name."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "rdfa-s6", "torch", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "triton", "mamba-ssm", "causal-conv1d",
)  # fmt: skip
GPU_QUERIES = {
    "driver": "driver_version",
    "sm_clock_max_mhz": "clocks.max.sm",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
}
VECTOR_EXTENSIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd", "sve")


def describe(threads: int | None = None) -> dict[str, Any]:
    """The machine, the software on it and its state now, as JSON values.

    `threads` is the number of threads that the measured code was told to use. The allocator's settings are part of the
    description: with glibc's defaults, returning large blocks to the kernel costs the detector 15 % of its time.
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "gpu": _gpu(),
        "gpu_details": gpu_details(),
        "memory_gb": _memory_gb(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": _versions(),
        "git_commit": _git_commit(),
        "threads": threads,
        "allocator": _allocator(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summary(environment: dict[str, Any]) -> str:
    """One line for the head of a table and for the machine column of CSV files."""
    cpu = environment["cpu"]
    packages = environment["packages"]
    parts = [f"{cpu['model']} ({cpu['available']} of {cpu['logical']} cores)"]
    if environment["gpu"]:
        parts.append(_describe_gpu(environment["gpu"], environment["gpu_details"]))
    if environment["threads"]:
        parts.append(f"{environment['threads']} threads")
    parts += [f"{name} {packages[name]}" for name in ("torch", "onnxruntime") if name in packages]
    parts.append(" ".join(f"{k}={v}" for k, v in environment["allocator"].items()) or "default allocator")
    return ", ".join(parts)


def _cpu() -> dict[str, Any]:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    except OSError:
        pass
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "isa": [name for name in VECTOR_EXTENSIONS if name in flags],
        "logical": os.cpu_count(),
        "available": available_cores(),
    }


def _gpu() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def gpu_details() -> dict[str, Any] | None:
    """What a time on the current CUDA device depends on, its clocks as they are now; None without a device."""
    if _gpu() is None:
        return None
    import torch

    properties = torch.cuda.get_device_properties()
    details = {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "l2_mb": round(properties.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
    } | _query_gpu(properties.uuid)
    if details["sm_clock_max_mhz"] is None and hasattr(properties, "clock_rate"):
        details["sm_clock_max_mhz"] = properties.clock_rate / 1e3
    return details


def _query_gpu(uuid: object) -> dict[str, Any]:
    """What only the driver's own tool tells; None for what it does not."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERIES.values())}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run([*command, "-i", f"GPU-{uuid}"], capture_output=True, text=True, timeout=30)
        values = answer.stdout.strip().split(", ") if answer.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        values = []
    found = dict(zip(GPU_QUERIES, values)) if len(values) == len(GPU_QUERIES) else {}
    details: dict[str, Any] = {name: _number(found.get(name)) for name in GPU_QUERIES}
    return details | {"driver": found.get("driver")}


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _describe_gpu(name: str, details: dict[str, Any]) -> str:
    clock = f", SM clock {details['sm_clock_mhz']:g} MHz" if details["sm_clock_mhz"] else ""
    clock += f" of {details['sm_clock_max_mhz']:g}" if clock and details["sm_clock_max_mhz"] else ""
    return f"{name} (driver {details['driver']}, CUDA {details['cuda']}{clock})"


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The commit of this checkout, with '+changes' when files differ from it; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _allocator() -> dict[str, str]:
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    preloaded = [Path(p).name for p in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()]
    return settings | ({"LD_PRELOAD": " ".join(preloaded)} if preloaded else {})
