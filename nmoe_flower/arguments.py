"""What the options of a command line may be: numbers, ports, addresses, names of a set, recipes.

Each is a ``type`` for ``argparse``: it returns the value, or says what was given and what is
allowed; ``argparse`` puts the option's name before it. NaN and infinity are no numbers here.
"""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmoe_flower.addresses import MAX_PORT, Address
from nmoe_flower.errors import ConfigError, did_you_mean
from nmoe_flower.recipes import find_recipe

__all__ = [
    "PORT",
    "SEED",
    "ImageShape",
    "ListenAddress",
    "NameList",
    "Number",
    "OutputFile",
    "Parser",
    "Whole",
    "recipe_argument",
]

_WHOLE = re.compile(r"[+-]?[0-9]+")
_SHOWN = 40


class Parser(argparse.ArgumentParser):
    """A parser of whole names, which tells what a misspelt choice was probably meant to be."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # --see is no seed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names) or f"; allowed: {', '.join(names)}"
            raise argparse.ArgumentError(action, f"{value!r} is unknown{hint}")


@dataclass(frozen=True)
class Whole:
    """A whole number.

    Attributes:
        least: The smallest that is allowed.
        most: The largest that is allowed.

    >>> Whole(1, 8)("3")
    3
    """

    least: int = 0
    most: int = (1 << 31) - 1

    def __call__(self, text: str) -> int:
        """The number; ``ArgumentTypeError`` if it is none or out of range."""
        word = text.strip()
        # Digits are counted first: Python refuses to read thousands of them.
        if _WHOLE.fullmatch(word) and len(word) <= len(str(self.most)) + 1:
            value = int(word)
            if self.least <= value <= self.most:
                return value
        raise _refused(text, f"a whole number from {self.least} to {self.most}")


@dataclass(frozen=True)
class ImageShape:
    """Channels, height and width of images.

    Attributes:
        most: The largest that each may be.

    >>> ImageShape()("3,32,32")
    (3, 32, 32)
    """

    most: int = 1 << 16

    def __call__(self, text: str) -> tuple[int, int, int]:
        """The three numbers; ``ArgumentTypeError`` if it is no such thing."""
        words = [word.strip() for word in text.split(",")] if len(text) <= 3 * _SHOWN else []
        if len(words) == 3 and all(_WHOLE.fullmatch(word) for word in words):
            channels, height, width = map(int, words)
            if all(1 <= size <= self.most for size in (channels, height, width)):
                return channels, height, width
        raise _refused(text, f"channels, height and width from 1 to {self.most}, as in 3,32,32")


@dataclass(frozen=True)
class Number:
    """A finite number: a duration, a rate, a weight.

    Attributes:
        least: The smallest that is allowed.
        most: The largest that is allowed.
        open: ``least`` itself is not allowed.
        below: ``most`` itself is not allowed.

    >>> Number(0, 60, open=True)("0.5")
    0.5
    """

    least: float
    most: float
    open: bool = False
    below: bool = False

    def __call__(self, text: str) -> float:
        """The number; ``ArgumentTypeError`` if it is none, not finite or out of range."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        above = value > self.least if self.open else value >= self.least
        if above and (value < self.most if self.below else value <= self.most):
            return value
        start = f"above {self.least:g}" if self.open else f"from {self.least:g}"
        end = f"below {self.most:g}" if self.below else f"to {self.most:g}"
        raise _refused(text, f"a number {start} {end}")


@dataclass(frozen=True)
class ListenAddress:
    """Where to listen, ``host:port``; port 0 lets the system choose.

    >>> ListenAddress()("127.0.0.1:0")
    '127.0.0.1:0'
    """

    def __call__(self, text: str) -> str:
        """The address; ``ArgumentTypeError`` if it is none."""
        try:
            return str(Address.parse(text, any_port=True))
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True)
class NameList:
    """Comma-separated names, each one of a set and none twice.

    Attributes:
        allowed: Names that may be given.

    >>> NameList(("tiny", "short"))("short,tiny")
    ['short', 'tiny']
    """

    allowed: tuple[str, ...]

    def __call__(self, text: str) -> list[str]:
        """The names; ``ArgumentTypeError`` if one is unknown, or there twice."""
        chosen = text.split(",")
        if set(chosen) <= set(self.allowed) and len(set(chosen)) == len(chosen):
            return chosen
        raise _refused(text, f"names of {', '.join(self.allowed)}, each once")


@dataclass(frozen=True)
class OutputFile:
    """A file to write; where its ending says the format, one of those that are known.

    Attributes:
        endings: Endings that are known, with their dots; empty: any will do.

    >>> OutputFile((".csv", ".json"))("assignment.csv").suffix
    '.csv'
    """

    endings: tuple[str, ...] = ()

    def __call__(self, text: str) -> Path:
        """The path; ``ArgumentTypeError`` if it ends in something else, or is a folder."""
        path = Path(text)
        if self.endings and path.suffix.lower() not in self.endings:
            raise _refused(text, f"a name that ends in {' or '.join(self.endings)}")
        if path.is_dir():
            raise _refused(text, "a file; this is a folder")
        return path


def recipe_argument(text: str) -> Path:
    """The file of a recipe that is named by its path, or by a name that comes along."""
    try:
        return find_recipe(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


PORT = Whole(1, MAX_PORT)
SEED = Whole(0, (1 << 32) - 1)  # as run.seed


def _refused(text: str, allowed: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return argparse.ArgumentTypeError(f"{shown!r}; allowed: {allowed}")
