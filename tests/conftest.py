"""What all tests share."""

import os
import tempfile

import pytest
import torch


def pytest_configure(config):
    """A folder for what is expensive to make, shared by the processes that the tests are spread over."""
    if not hasattr(config, "workerinput"):
        config.shared_folder = tempfile.TemporaryDirectory(prefix="rdfa_tests_")
        os.environ["RDFA_TEST_FOLDER"] = config.shared_folder.name


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        config.shared_folder.cleanup()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Models and operators this small gain nothing from threads, and lose much where other work shares the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def threads():
    """`torch.set_num_threads`, undone after the test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)
