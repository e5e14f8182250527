"""What all sections of the configuration share: kebab-case keys, lists from text, no surprises."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from nmoe_flower.errors import did_you_mean
from nmoe_flower.own_code import FORM, is_own

__all__ = [
    "ALLOWED",
    "OF_A_FILE",
    "Distinct",
    "Floats",
    "Ints",
    "Names",
    "NamesOrOwn",
    "Seconds",
    "Section",
    "Widths",
    "kebab",
    "own_parts",
    "shown",
    "split",
]

ALLOWED = "allowed"
"""Of a field with a pattern: what it allows, in words, in ``json_schema_extra``."""
OF_A_FILE: dict[str, Any] = {
    "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    "json_schema_extra": {ALLOWED: "letters, digits, . _ and -, a letter or digit first"},
}
"""What a field's text may be that names files or a folder."""

_LARGEST = 2**32 - 1  # of whole numbers: Flower carries 64 bits, and no count comes near this
_LONGEST = 1024  # list
_WIDEST, _MOST_LAYERS = 2**20, 64


def kebab(name: str) -> str:
    """The key of a field: ``top_k`` is ``top-k``."""
    return name.replace("_", "-")


def split(value: Any) -> Any:
    """Read ``"a, b"`` as ``("a", "b")``; leave everything else to pydantic."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value,)
    return value


def _names(value: Any) -> Any:
    """As ``split``; a whole number is a name too."""
    found = split(value)
    if not isinstance(found, tuple | list):
        return found
    return tuple(str(part) if type(part) is int else part for part in found)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list that names something twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"every name may stand there once, {value} stands there twice")
    return values


def _widths(values: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse layers that no network has."""
    if any(not 1 <= value <= _WIDEST for value in values) or len(values) > _MOST_LAYERS:
        raise ValueError(
            f"up to {_MOST_LAYERS} widths from 1 to {_WIDEST:,} are allowed, got {shown(values)}"
        )
    return values


def shown(value: Any) -> str:
    """A value for an error: as Python writes it, and never longer than a line.

    >>> shown("a" * 200)[-20:], shown(10**5000)
    ("aaaaaaaaaaaaaaaa'...", 'a number of about 5000 digits')
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"a number of about {round(abs(value).bit_length() * 0.30103)} digits"
    return text if len(text) <= 80 else f"{text[:76]}{text[-1]}..."


Widths = Annotated[tuple[int, ...], BeforeValidator(split), AfterValidator(_widths)]
Ints = Annotated[tuple[int, ...], BeforeValidator(split), Field(max_length=_LONGEST)]
Floats = Annotated[tuple[float, ...], BeforeValidator(split)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]  # a year
Distinct = AfterValidator(_distinct)
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Distinct]


@dataclass(frozen=True)
class NamesOrOwn:
    """Text that is one of ``names``, or names somebody's own code: ``package.module:Name``.

    Those of ``libraries`` stand before a name of theirs: ``library:NAME``.
    """

    names: tuple[str, ...]
    libraries: tuple[str, ...] = ()

    @property
    def listed(self) -> tuple[str, ...]:
        """What an error or a page lists: all names, and the form of those of libraries."""
        return (*self.names, *(f"{library}:NAME" for library in self.libraries))

    def is_own(self, value: str) -> bool:
        """Whether an allowed value is somebody's own code."""
        known = value in self.names or value.partition(":")[0] in self.libraries
        return not known and is_own(value)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Checked after it is known to be text."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        library, _, name = value.partition(":")
        if library in self.libraries:
            if name.strip() == name and name:
                return value
            raise ValueError(f"input should be {library}:NAME, got {shown(value)}")
        if value in self.names or is_own(value):
            return value
        allowed = ", ".join(map(repr, self.listed))
        hint = did_you_mean(value, self.names)
        raise ValueError(f"input should be {allowed} or {FORM}, got {shown(value)}{hint}")


class Section(BaseModel):
    """A frozen table of settings; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=kebab,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _of_the_right_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``gate.rounds=true``, which Python would read as 1; take 2024 for a text."""
        kind = cls.model_fields[str(info.field_name)].annotation
        value = _plain(value)
        if isinstance(value, bool) and kind is not bool:
            raise ValueError(f"a value is wanted, not a switch, got {value!r}")
        if kind is str and isinstance(value, int):
            return shown(value)
        if kind is str and isinstance(value, float):
            raise ValueError(f"text is wanted, got the number {value}: write it in quotes")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_carried(cls, value: Any) -> Any:
        """Refuse what no file or message could hold."""
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, int) and abs(part) > _LARGEST:
                raise ValueError(f"whole numbers go up to {_LARGEST:,}, got {shown(part)}")
            if isinstance(part, str) and (odd := _unwritable(part)):
                raise ValueError(f"{odd}, got {shown(part)}")
        return value


def own_parts(kind: Any, value: Any) -> Iterator[str]:
    """What of a field's value is somebody's own code, ``package.module:Name``.

    Args:
        kind: The field, as pydantic knows it, or the annotation of a part of it.
        value: The value, which is allowed.

    >>> kind = Annotated[str, NamesOrOwn(("iid",))]
    >>> list(own_parts(tuple[kind, ...], ("iid", "my_pkg:deal")))
    ['my_pkg:deal']
    """
    told = kind.metadata if isinstance(kind, FieldInfo) else getattr(kind, "__metadata__", ())
    for one in told:
        if isinstance(one, NamesOrOwn) and one.is_own(value):
            yield value
    below = kind.annotation if isinstance(kind, FieldInfo) else kind
    if isinstance(value, tuple):
        for part, inner in itertools.product(value, get_args(below)[:1]):
            yield from own_parts(inner, part)


def _plain(value: Any) -> Any:
    """A path as its text, and NumPy's numbers as Python's: what a program hands over.

    >>> _plain(PurePath("photos"))
    'photos'
    """
    if isinstance(value, PurePath):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _unwritable(text: str) -> str:
    """Why a text cannot be written as UTF-8 or name a file; empty if it can."""
    if "\0" in text:
        return "text must not hold a NUL"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "text must be UTF-8"
    return ""
