"""What the arguments of a strategy may be. Flower checks none of its own."""

import math
from numbers import Integral, Real

from flwr.app import ArrayRecord

from nmoe_flower import records
from nmoe_flower.errors import ConfigError, ReplyError

__all__ = ["require_arrays", "require_number", "require_whole"]


def require_number(
    name: str,
    value: object,
    *,
    most: float = math.inf,
    above: bool = False,
    below: bool = False,
) -> float:
    """A number from 0 to ``most``; never NaN.

    Args:
        name: Name of the argument, for the error.
        value: What was given.
        most: The largest that is allowed.
        above: 0 itself is not allowed.
        below: ``most`` itself is not allowed; if that is infinite: the number must be finite.

    Raises:
        ConfigError: It is none.

    >>> require_number("ema", 0.5, most=1.0, below=True)
    0.5
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        found = float(value)
        low = found > 0 if above else found >= 0
        if low and (found < most if below else found <= most):
            return found
    kind = "finite number" if below and most == math.inf else "number"
    start = "above 0" if above else "of at least 0"
    end = "" if most == math.inf else f" and {'below' if below else 'at most'} {most:g}"
    raise ConfigError(f"{name} must be a {kind} {start}{end}, got {value!r}")


def require_whole(name: str, value: object, least: int = 0) -> int:
    """A whole number of at least ``least``.

    Raises:
        ConfigError: It is none.

    >>> require_whole("min_replies", 2)
    2
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def require_arrays(initial: object) -> None:
    """Refuse arrays that no training can start from: clients would be blamed for them.

    Raises:
        ConfigError: They are no ArrayRecord, or one of them is not numeric or not finite.
    """
    if not isinstance(initial, ArrayRecord):
        raise ConfigError(f"initial_arrays must be an ArrayRecord, got {type(initial).__name__}")
    try:
        records.require_finite(records.to_numpy(initial))
    except ReplyError as error:
        raise ConfigError(f"initial_arrays: {error}") from None
