import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Fastest for models this small, most of all for the plain reference operators."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
