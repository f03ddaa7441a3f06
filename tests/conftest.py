"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Models and operators this small gain nothing from threads, and lose much where other work shares the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def threads():
    """`torch.set_num_threads`, undone after the test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)
