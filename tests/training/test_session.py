"""Names of sessions, and one voice among several processes. Threads stand for processes."""

import threading

import pytest
import torch.distributed as dist

from rdfa.errors import RunError, UsageError
from rdfa.training import session


@pytest.fixture
def store():
    return dist.HashStore()


@pytest.fixture(autouse=True)
def own_session(monkeypatch):
    monkeypatch.setattr(session, "_session", "0")


def open_all(store, world):
    names = [None] * world

    def member(rank):
        names[rank] = session.open_session(store, rank, world)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in reversed(range(world))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return names


def test_all_have_one_name_and_every_start_another(store):
    starts = [open_all(store, world) for world in (3, 3, 2, 4)]  # the store is never cleared
    assert all(len(set(names)) == 1 for names in starts)
    assert len({names[0] for names in starts}) == 4


def test_words_of_the_past_are_not_taken_for_the_present(store, monkeypatch):
    """The main process starts anew, but the other one of before is gone and has no successor yet."""
    open_all(store, 2)
    monkeypatch.setattr(session, "PATIENCE", session.PATIENCE / 2000)
    with pytest.raises(RunError, match="1 of 2 processes did not start"):
        session.open_session(store, 0, 2)


def several(monkeypatch, store):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(session, "open_store", lambda patience: store)


def test_only_the_first_speaks(store, monkeypatch):
    several(monkeypatch, store)
    with pytest.raises(UsageError, match="wrong"), session.one_voice():
        raise UsageError("wrong")
    for error, code in ((UsageError, 2), (RunError, 1), (OSError, 1)):
        with pytest.raises(SystemExit) as stop, session.one_voice():
            raise error("wrong as well")
        assert stop.value.code == code
    monkeypatch.setattr(session, "_session", "another")  # after a restart there is something new to say
    with pytest.raises(RunError, match="new"), session.one_voice():
        raise RunError("new")


def test_who_cannot_ask_speaks(monkeypatch):
    def fail(patience):
        raise RuntimeError("nobody answers")

    several(monkeypatch, None)
    monkeypatch.setattr(session, "open_store", fail)
    with pytest.raises(RunError, match="bad"), session.one_voice():
        raise RunError("bad")


def test_alone_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(session, "open_store", None)
    with pytest.raises(RunError, match="bad"), session.one_voice():
        raise RunError("bad")
