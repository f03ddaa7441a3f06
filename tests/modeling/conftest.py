import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Detectors this small gain nothing from threads, and lose much where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
