import pytest
import torch

from conftest import make_pipe
from mrflow.errors import BusyError
from mrflow.passes import borrowed, exact_scheduler, own_scheduler


def test_own_scheduler_is_an_equal_copy() -> None:
    pipe = make_pipe(use_dynamic_shifting=False, shift=3.0)
    pipe.scheduler.set_shift(2.0)  # set after construction, so not in the configuration
    copy = own_scheduler(pipe)
    assert copy is not pipe.scheduler
    assert copy.shift == 2.0
    assert dict(copy.config) == dict(pipe.scheduler.config)
    before = pipe.scheduler.sigmas.clone()
    copy.set_timesteps(3)
    assert torch.equal(pipe.scheduler.sigmas, before)


@pytest.mark.parametrize("asked", [{"sigmas": [0.9, 0.5], "mu": 2.3}, {"timesteps": [1.0]}, {}], ids=str)
def test_exact_scheduler_takes_its_sigmas_whatever_is_asked(asked: dict[str, object]) -> None:
    pipe = make_pipe(shift_terminal=0.1, use_karras_sigmas=True, num_train_timesteps=500)
    scheduler = exact_scheduler(pipe, [0.12, 0.06, 0.0])
    scheduler.set_timesteps(7, device="cpu", **asked)
    assert scheduler.sigmas.tolist() == torch.tensor([0.12, 0.06, 0.0]).tolist()
    assert scheduler.timesteps.tolist() == pytest.approx([60, 30])


def test_a_borrowed_pipeline_cannot_be_borrowed_again(pipe) -> None:
    with borrowed(pipe):
        assert not torch.is_grad_enabled()
        with pytest.raises(BusyError), borrowed(pipe):
            pass
    with borrowed(pipe):
        pass
