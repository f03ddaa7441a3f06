"""Pickles read without running what they say: plain containers, text, numbers and numpy arrays, and nothing else."""

import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np


def load_pickle(data: bytes) -> Any:
    """The content of a pickle of any protocol, also of Python 2.

    Raises:
        pickle.UnpicklingError: it asks for anything that could run code; the message names what.
        Exception: almost any, for damaged bytes.
    """
    return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves the few names that arrays are made of; everything else a pickle can ask for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        # Where numpy keeps the functions that rebuild arrays depends on its version, so they are asked for by doing.
        package, _, inner = module.partition(".")
        known = {
            ("numpy", "", "ndarray"): np.ndarray,
            ("numpy", "", "dtype"): np.dtype,
            ("numpy", "multiarray", "_reconstruct"): np.empty(1).__reduce__()[0],
            ("numpy", "multiarray", "scalar"): np.float64(0).__reduce__()[0],
            ("numpy", "numeric", "_frombuffer"): np.empty(1).__reduce_ex__(5)[0],
            ("collections", "", "OrderedDict"): OrderedDict,
            ("_codecs", "", "encode"): _encode,
        }
        found = known.get((package, inner.removeprefix("_").removeprefix("core."), name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")
        return found


def _encode(text: str, encoding: str) -> bytes:
    """What protocols before 3 write bytes with; the codec is not looked up, so that no other can be asked for."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin-1")
