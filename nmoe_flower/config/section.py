"""What all sections of the configuration share: kebab-case keys, lists from text, no surprises."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

__all__ = ["Floats", "Ints", "Section", "kebab", "split"]


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


Ints = Annotated[tuple[int, ...], BeforeValidator(split)]
Floats = Annotated[tuple[float, ...], BeforeValidator(split)]


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
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``gate.rounds=true``, which Python would read as 1."""
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation is not bool
        ):
            raise ValueError(f"a value is wanted, not a switch, got {value!r}")
        return value
