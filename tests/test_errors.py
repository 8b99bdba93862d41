import inspect

import pytest

from mrflow import errors
from mrflow.errors import MissingExtraError, MrFlowError, MrFlowWarning, reason

CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("item", CLASSES)
def test_one_tree_each_also_a_built_in(item: type) -> None:
    assert issubclass(item, (MrFlowError, MrFlowWarning))
    if item is not MrFlowError and issubclass(item, MrFlowError):
        assert issubclass(item, (ValueError, RuntimeError, OSError, ImportError, ArithmeticError))
    assert item.__doc__


def test_a_missing_extra_names_its_command() -> None:
    assert str(MissingExtraError("uvicorn", "server")).endswith('pip install ".[server]"')


def test_a_reason_has_what_torch_says_below_its_heading() -> None:
    heading = "Error(s) in loading state_dict for Flux:"
    assert (
        reason(RuntimeError(f"{heading}\n\tsize mismatch for x.\n\tand y.")) == f"{heading} size mismatch for x."
    )
    assert reason(ValueError("one\ntwo")) == "one"
    assert reason(KeyError()) == "KeyError"
