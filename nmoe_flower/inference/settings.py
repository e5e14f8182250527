"""What a setting of who asks or answers may be: times, and numbers from 0 on."""

import math

from nmoe_flower.errors import ConfigError

__all__ = ["check_not_negative", "check_seconds"]


def check_seconds(**seconds: float | None) -> None:
    """Refuse times that are not positive and finite; None is fine.

    Raises:
        ConfigError: Names the first one.
    """
    for name, value in seconds.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; allowed: a positive number of seconds")


def check_not_negative(**numbers: float) -> None:
    """Refuse numbers below 0, and those that are none or infinite.

    Raises:
        ConfigError: Names the first one.
    """
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; allowed: 0 or more")
