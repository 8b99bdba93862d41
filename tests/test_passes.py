import pytest
import torch

from mrflow.borrowing import borrowed
from mrflow.errors import BusyError


def test_a_borrowed_pipeline_cannot_be_borrowed_again(pipe) -> None:
    with borrowed(pipe):
        assert not torch.is_grad_enabled()
        with pytest.raises(BusyError), borrowed(pipe):
            pass
    with borrowed(pipe):
        pass
