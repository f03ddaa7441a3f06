"""The unpickler: what arrays need, in every protocol and of every numpy, and nothing that could run."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from rdfa.data.pickles import load_pickle

VALUES = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(12, dtype=">i2").reshape(4, 3)[::2],
    "scalar": np.float64(0.5),
    "containers": OrderedDict([("a", [1, 2.5, None, True, "é"]), ("b", (b"x", {"c": 3}))]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", VALUES)
def test_every_protocol(name, protocol):
    loaded = load_pickle(pickle.dumps(VALUES[name], protocol))
    np.testing.assert_equal(loaded, VALUES[name])
    assert type(loaded) is type(VALUES[name])


def test_numpy_1_and_numpy_2_names():
    data = pickle.dumps(VALUES["array"], 3)
    (ours,) = {name for name in (b"numpy.core.", b"numpy._core.") if name in data}
    for name in (b"numpy.core.", b"numpy._core."):
        np.testing.assert_equal(load_pickle(data.replace(ours, name)), VALUES["array"])


def test_python_2():
    """numpy.array([1, 2], 'int16') and a text of Python 2, where both are 8-bit strings."""
    data = (
        b"(cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'i2'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x01\\x00\\x02\\x00'\ntbS'v_a'\nt."
    )
    array, text = load_pickle(data)
    assert array.dtype == np.int16 and array.tolist() == [1, 2] and text == "v_a"


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def refused(function, *args):
    return pickle.dumps({"a": Calls(function, *args)})


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (refused(print, "x"), "print"),
        (refused(eval, "1"), "eval"),
        (refused(getattr, {}, "keys"), "getattr"),
        (refused(np.load, "x"), "load"),
        (refused(np.memmap, "x"), "memmap"),
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"cnumpy\nndarray.tofile\n.", "numpy.ndarray.tofile"),
        (b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.", "codec 'zip'"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "fromfile"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_everything_else_is_refused_unrun(data, name, capsys):
    with pytest.raises(pickle.UnpicklingError, match="asks for") as error:
        load_pickle(data)
    assert name in str(error.value) and not capsys.readouterr().out


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_damaged(size):
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError)):
        load_pickle(pickle.dumps(VALUES["array"])[:size])
