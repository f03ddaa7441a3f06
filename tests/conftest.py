"""What all tests share."""

from unittest import mock

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Models and operators this small gain nothing from threads, and lose much where other work shares the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_new_processes():
    """Exports leave out to start each file in a process of its own, seconds for each: one test of them does that."""
    with mock.patch("rdfa.deploy.artifact._time_starts"):
        yield


@pytest.fixture
def threads():
    """`torch.set_num_threads`, undone after the test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)
