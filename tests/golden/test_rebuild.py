"""What the golden files leave out, because a seed gives it, is bit for bit what the published code was fed."""

import hashlib
import json

import numpy as np
import pytest

from tests.golden import rebuild

# SHA-256 of the float32 or, in model_small_cmamba, float16 values in C order; of several arrays in state_dict order.
PUBLISHED = json.loads((rebuild.FOLDER / "rebuilt_sha256.json").read_text())
SMALL = ["small_a", "small_b", "small_c", "small_d"]


def sha256(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("case", SMALL)
def test_small_cases(case):
    published, shared = PUBLISHED[f"model_{case}"], PUBLISHED["model_small_cmamba"]
    features, _ = rebuild.case_input(rebuild.case_meta(case))
    state = rebuild.case_state_dict(case)
    own = [value for name, value in state.items() if name not in shared]
    assert features.dtype == np.float32 and {value.dtype for value in own} == {np.dtype(np.float32)}
    assert sha256([features]) == published["input"]
    assert len(own) == published["num_sd"] and sha256(own) == published["sd"]
    for name, digest in shared.items():
        # Exact in float16: that is how the published file holds them.
        assert np.array_equal(state[name].astype(np.float16).astype(np.float32), state[name])
        assert sha256([state[name].astype(np.float16)]) == digest, name


@pytest.mark.slow
def test_full_case():
    meta = rebuild.case_meta("full")
    features, _ = rebuild.case_input(meta)
    assert sha256([features]) == meta["input_sha256"]
    state = rebuild.case_state_dict("full")
    assert state.keys() == meta["param_sha256"].keys()
    for name, value in state.items():
        assert sha256([value]) == meta["param_sha256"][name], name
