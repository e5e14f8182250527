"""Settings that were changed and that this run does not read, by one table of who reads what."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from nmoe_flower.catalogue import BASELINES, SCHEMES
from nmoe_flower.config.extractor import ExtractorConfig
from nmoe_flower.config.section import kebab
from nmoe_flower.own_code import is_own
from nmoe_flower.plurals import one_or_many

if TYPE_CHECKING:
    from nmoe_flower.config.whole import Config

__all__ = ["unread"]


class _Readers(NamedTuple):
    """Keys, and who reads them.

    Attributes:
        keys: Dotted keys; or one ``section.*`` for all of a section but ``others``.
        who: What of a configuration reads them, in words.
        by: The keys that decide whether this one does.
        read: Whether this one does.
        others: Keys of the section that have rows of their own.
    """

    keys: tuple[str, ...]
    who: str
    by: tuple[str, ...]
    read: Callable[["Config"], bool]
    others: tuple[str, ...] = ()


def _system(*names: str) -> Callable[["Config"], bool]:
    return lambda config: config.run.system in names


def _named(section: str, *keys: str) -> tuple[str, ...]:
    return tuple(f"{section}.{key}" for key in keys)


def _is_no_language(config: "Config") -> bool:
    return config.run.system != "language"


_RUN = ("run.system",)
_NOT_OF_LANGUAGE = "other systems than language"
_TAKEN_BY_LANGUAGE = ("method", "start", "backbone", "weights", "widths")  # read, or refused
_OF_TEXT = _named("text", "tokenizer", "window", "unit", "column")
_TABLE = (
    *(
        _Readers(
            (f"baseline.{key}",),
            ", ".join(names),
            _RUN,
            lambda config, names=names: (  # type: ignore[misc]
                config.run.system not in BASELINES or config.run.system in names
            ),
        )
        for key in dict.fromkeys(key for one in BASELINES.values() for key in one.reads)
        for names in [tuple(name for name, one in BASELINES.items() if key in one.reads)]
    ),
    _Readers(("baseline.*",), "published systems (nmoe systems)", _RUN, _system(*BASELINES)),
    _Readers(("alignment.*",), "run.system = aligned", _RUN, _system("aligned")),
    _Readers(("adapter.*",), "run.system = language", _RUN, _system("language")),
    _Readers(("query.*",), "run.system = language", _RUN, _system("language")),
    _Readers(
        _OF_TEXT,
        "data.kind = text",
        ("data.kind",),
        lambda config: config.data.kind == "text",
    ),
    _Readers(
        ("text.too-long",),
        "text that is classified (data.kind = text, and another system than language)",
        ("data.kind", "run.system"),
        lambda config: config.data.kind == "text" and config.run.system != "language",
    ),
    _Readers(
        ("text.*",),
        "run.system = language",
        _RUN,
        _system("language"),
        others=(*_OF_TEXT, "text.too-long"),
    ),
    _Readers(
        ("contrast.*",),
        "extractor.method = fedsc, where there is a stage 1",
        ("run.system", "extractor.method"),
        lambda config: config.has_stage_1 and config.extractor.method == "fedsc",
    ),
    _Readers(
        tuple(
            f"extractor.{kebab(name)}"
            for name in ExtractorConfig.model_fields
            if name not in _TAKEN_BY_LANGUAGE
        ),
        _NOT_OF_LANGUAGE,
        _RUN,
        _is_no_language,
    ),
    _Readers(("head.*",), "run.system = networked", _RUN, _system("networked")),
    _Readers(
        _named(
            "expert",
            "epochs",
            "batch-size",
            "learning-rate",
            "weight-decay",
            "label-smoothing",
            "logit-adjustment",
        ),
        "run.system = networked",
        _RUN,
        _system("networked"),
    ),
    _Readers(_named("expert", "init", "hidden"), _NOT_OF_LANGUAGE, _RUN, _is_no_language),
    _Readers(
        _named("run", "controls", "control-epochs", "control-learning-rate"),
        "run.system = networked (language has adapter.controls)",
        _RUN,
        _is_no_language,
    ),
    _Readers(
        ("privacy.epsilon",),
        "privacy.enabled and privacy.tokens",
        ("privacy.enabled", "privacy.tokens"),
        lambda config: config.privacy.enabled or config.privacy.tokens,
    ),
    _Readers(
        _named("privacy", "delta", "adjacency", "secure"),
        "privacy.enabled, privacy.tokens and privacy.weights",
        ("privacy.enabled", "privacy.tokens", "privacy.weights"),
        lambda config: config.privacy.enabled or config.privacy.tokens or config.privacy.weights,
    ),
    _Readers(
        _named("privacy", "releases", "shrink"),
        "privacy.enabled",
        ("privacy.enabled",),
        lambda config: config.privacy.enabled,
    ),
    _Readers(
        ("privacy.tokens-clip",),
        "privacy.tokens",
        ("privacy.tokens",),
        lambda config: config.privacy.tokens,
    ),
    _Readers(
        _named("privacy", "weights-epsilon", "weights-clip", "weights-noise"),
        "privacy.weights",
        ("privacy.weights",),
        lambda config: config.privacy.weights,
    ),
    *(
        _Readers(
            (entry.key,),
            f"data.scheme = {name}",
            ("data.scheme",),
            lambda config, name=name: (  # type: ignore[misc]
                config.data.scheme == name or is_own(config.data.scheme)
            ),
        )
        for name, entry in SCHEMES.items()
        if entry.key
    ),
    _Readers(
        ("gate.*",),
        "run.system = networked and language",
        _RUN,
        _system("networked", "language"),
        others=("gate.hidden",),
    ),
    _Readers(
        ("gate.hidden",),
        "run.system = networked and aligned",
        _RUN,
        _system("networked", "aligned", "language"),
    ),
    _Readers(
        _named("gate", "keep", "rolling", "cycles"),
        "the gate rolling of run.system = networked",
        ("run.system", "gate.methods"),
        lambda config: config.run.system == "networked" and "rolling" in config.gate.methods,
    ),
    _Readers(
        ("gate.distribution",),
        "the gate random of run.system = networked",
        ("run.system", "gate.methods"),
        lambda config: config.run.system == "networked" and "random" in config.gate.methods,
    ),
    _Readers(
        ("gate.embedding",),
        "gate.form = metric",
        ("gate.form",),
        lambda config: config.gate.form == "metric",
    ),
    _Readers(
        ("gate.temperature",),
        "gate.objective = distill",
        ("gate.objective",),
        lambda config: config.gate.objective == "distill",
    ),
    _Readers(
        _named("gate", "shortlist", "folds", "holdout", "prior"),
        "run.system = networked",
        _RUN,
        _system("networked"),
    ),
)


def unread(config: "Config") -> Iterator[str]:
    """Settings that were changed and that nobody reads in this run, in words.

    Args:
        config: The run's configuration.
    """
    return (_note(config, row, found) for row, found in _without_readers(config))


def _without_readers(config: "Config") -> Iterator[tuple[_Readers, dict[str, object]]]:
    """Rows that do not read, with the changed settings that they name; each setting once."""
    changed = _changed(config)
    for row in _TABLE:
        if row.read(config):
            continue
        found = {key: value for key, value in changed.items() if _names(row, key)}
        for key in found:
            del changed[key]
        if found:
            yield row, found


def _names(row: _Readers, key: str) -> bool:
    return key in row.keys or (_section(key) in row.keys and key not in row.others)


def _section(key: str) -> str:
    return f"{key.partition('.')[0]}.*"


def _changed(config: "Config") -> dict[str, object]:
    """Every setting that is not as it comes, by dotted key."""
    return {
        f"{section}.{kebab(name)}": getattr(values, name)
        for section, values in config
        for name, field in type(values).model_fields.items()
        if getattr(values, name) != field.default
    }


def _note(config: "Config", row: _Readers, told: dict[str, object]) -> str:
    settings, section = config.flat(), _section(next(iter(told)))
    named = ", ".join(f"{key} = {_as_set(value)}".rstrip() for key, value in told.items())
    this = " and ".join(f"{key} = {_as_set(settings[key])}" for key in row.by)
    if section in row.keys:
        return f"{named}: for {row.who}, and {this} reads none of {section}"
    are = one_or_many(len(told), "is", "are")
    return f"{named} {are} read by {row.who}, and not by {this}"


def _as_set(value: object) -> str:
    """A value as it is set: switches in lower case, lists with commas."""
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
