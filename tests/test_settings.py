"""The names a message lists."""

from rdfa.settings import MOST_NAMES, nearest


def test_the_nearest_name_or_as_many_as_fit_on_a_line():
    assert nearest("Loder", ["Loader", "Training"]) == "did you mean 'Loader'?"
    assert nearest("x", ["b", "a"]) == "valid: a, b"
    assert nearest("x", []) == "there is none"
    many = [f"video_{i:04d}" for i in range(MOST_NAMES + 2)]
    assert nearest("x", many).endswith(f"{many[MOST_NAMES - 1]} and 2 more")
    assert nearest("x", many[:MOST_NAMES]).endswith(many[MOST_NAMES - 1])
