"""Batches made ready ahead of their turn."""

import pytest
import torch

from rdfa.training.feed import Feed

CPU = torch.device("cpu")


def log_of(batches, look_ahead):
    """What happened, in order, when `batches` were used."""
    log = []

    def load():
        for batch in batches:
            log.append(f"load {batch}")
            if isinstance(batch, Exception):
                raise batch
            yield batch

    feed = Feed(load(), lambda batch: log.append(f"prepare {batch}") or batch, CPU)
    try:
        for batch in feed:
            log.append(f"launch {batch}")
            if look_ahead:
                feed.look_ahead()
            log.append(f"wait {batch}")
    except ValueError as error:
        log.append(f"raised {error}")
    return log


def test_the_next_batch_is_made_ready_before_the_wait():
    assert log_of([1, 2], look_ahead=True) == [
        *("load 1", "prepare 1", "launch 1", "load 2", "prepare 2", "wait 1", "launch 2", "wait 2")
    ]


def test_without_looking_ahead_each_comes_in_its_turn():
    assert log_of([1, 2], look_ahead=False) == [
        *("load 1", "prepare 1", "launch 1", "wait 1", "load 2", "prepare 2", "launch 2", "wait 2")
    ]


@pytest.mark.parametrize("look_ahead", (False, True))
def test_an_error_is_raised_in_its_turn(look_ahead):
    log = log_of([1, ValueError("bad file"), 3], look_ahead)
    assert log.index("wait 1") < log.index("raised bad file") == len(log) - 1
    assert "load 3" not in log


def test_no_batch_at_all():
    assert log_of([], look_ahead=True) == []
