"""Weights and inputs of the golden cases, rebuilt bit for bit from a seed.

The golden files of whole models hold only outputs. What went in is a pure function of (seed, name, shape): numpy's
frozen ``RandomState`` stream, then float64 ``+ - * /``, so every platform gives the same float32 bits, and
`test_rebuild.py` compares them with the hashes of what the published code was fed.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
# The two large matrices of the channel Mamba are shared by all small cases: this seed, rounded to float16.
SHARED_SEED = 1000
SHARED = ("c_mamba.in_proj.weight", "c_mamba.out_proj.weight")
# log(1) .. log(16) as literals: libm may differ in the last bit between platforms.
LOG_1_16 = (
    0.0, 0.6931471805599453, 1.0986122886681098, 1.3862943611198906, 1.6094379124341003, 1.791759469228055,
    1.9459101490553132, 2.0794415416798357, 2.1972245773362196, 2.302585092994046, 2.3978952727983707,
    2.4849066497880004, 2.5649493574615367, 2.6390573296152584, 2.70805020110221, 2.772588722239781,
)  # fmt: skip


def uniform(shape, *key) -> np.ndarray:
    """Uniform numbers in [-1, 1), float64, seeded by the crc32 of the key's parts joined by '|'."""
    seed = zlib.crc32("|".join(map(str, key)).encode())
    return np.asarray(np.random.RandomState(seed).random_sample(tuple(shape)) * 2.0 - 1.0)


def parameter(name: str, shape, seed: int) -> np.ndarray:
    """The golden float32 value of the parameter `name`."""
    parts = name.split(".")
    u = uniform(shape, seed, name)
    owner, kind = parts[-2], parts[-1]
    is_norm = owner in ("ln", "ln_1", "ln_2") or "norm" in parts or "fpn_norms" in parts
    if kind == "A_log":
        value = np.array(LOG_1_16)[None, :] + 0.3 * u
    elif kind == "D":
        value = 1.0 + 0.3 * u
    elif kind == "scale":
        value = 0.75 + 0.25 * u if owner == "drop_path" else 1.0 + 0.3 * u
    elif "conv1ds" in parts:
        value = (0.7 if kind == "weight" else 0.3) * u
    elif "dt_proj" in parts:
        value = u / math.sqrt(shape[1]) if kind == "weight" else -2.0 + 1.5 * u
    elif is_norm:
        value = 1.0 + 0.3 * u if kind == "weight" else 0.3 * u
    elif kind == "bias":
        value = {"cls_head": -1.0 + 0.5 * u, "offset_head": 0.5 + 0.3 * u}.get(parts[-3], 0.1 * u)
    else:
        fan_in = math.prod(shape[1:])
        gain = 2.0 if ("x_proj" in parts or "out_proj" in parts) else 1.0
        if "c_mamba" in parts and "out_proj" in parts:
            u = 0.5 * u + uniform(shape[1:], seed, name, "common")[None, :]
        value = gain * math.sqrt(3.0 / fan_in) * u
    return np.asarray(value, dtype=np.float32)


def case_input(meta: dict) -> tuple[np.ndarray, np.ndarray]:
    """features (B, C, T) float32, zero at and after each valid length, and mask (B, T) bool."""
    features = (1.7320508 * uniform((meta["B"], meta["input_c"], meta["T"]), meta["seed"], "input")).astype(np.float32)
    mask = np.arange(meta["T"])[None] < np.asarray(meta["valid"])[:, None]
    return np.where(mask[:, None], features, np.float32(0)), mask  # a product would make zeros of both signs


def case_meta(case: str) -> dict:
    """Settings of 'small_a' .. 'small_d' or 'full'."""
    return json.loads((FOLDER / f"model_{case}.json").read_text())


def case_state_dict(case: str) -> dict[str, np.ndarray]:
    """name -> float32 array, in the published order, of a golden model."""
    meta = case_meta(case)
    if case == "full":
        listing = json.loads((FOLDER / "model_full_parameters.json").read_text())["parameters"]
        return {p["name"]: parameter(p["name"], p["shape"], meta["seed"]) for p in listing}
    return {
        name: parameter(name, shape, SHARED_SEED).astype(np.float16).astype(np.float32)
        if name.endswith(SHARED)
        else parameter(name, shape, meta["seed"])
        for name, shape in meta["state_dict"]
    }


def load_npz(name: str) -> dict[str, np.ndarray]:
    """All arrays of one golden .npz file."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}
