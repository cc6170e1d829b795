"""What all tests of directions share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The matrices are small: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
