import inspect

import pytest

from nmoe_flower import errors
from nmoe_flower.errors import NMoEError

ALL = [
    value for value in vars(errors).values() if inspect.isclass(value) and value is not NMoEError
]


def test_every_error_is_caught_as_one_kind_and_drawn_in_the_tree() -> None:
    assert len(ALL) == 11
    for error in ALL:
        assert issubclass(error, NMoEError)
        assert f"── {error.__name__} " in str(errors.__doc__)


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_bad_values_are_value_errors_and_failures_runtime_errors(error: type[Exception]) -> None:
    """Code that knows nothing of this package still catches them by their nature."""
    bad_value = error.__name__ in {"ConfigError", "DataError", "ReplyError", "WireError"}
    assert issubclass(error, ValueError) is bad_value
    assert issubclass(error, RuntimeError) is not bad_value
