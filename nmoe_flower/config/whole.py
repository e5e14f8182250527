"""A whole run's configuration, and the ways in and out of it."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from nmoe_flower.begun import is_run, read_settings
from nmoe_flower.catalogue import BASELINES, CHUNKS, GATES, TEXT_GATES
from nmoe_flower.commands import command_line
from nmoe_flower.config.adapter import AdapterConfig
from nmoe_flower.config.alignment import AlignmentConfig
from nmoe_flower.config.baseline import BaselineConfig
from nmoe_flower.config.data import DataConfig
from nmoe_flower.config.engine import EngineConfig
from nmoe_flower.config.expert import ExpertConfig
from nmoe_flower.config.extractor import ExtractorConfig
from nmoe_flower.config.fedsc import FedSCConfig
from nmoe_flower.config.gate import GateConfig
from nmoe_flower.config.head import HeadConfig
from nmoe_flower.config.privacy import PrivacyConfig
from nmoe_flower.config.query import QueryConfig
from nmoe_flower.config.rules import advice, check_rules
from nmoe_flower.config.run import RunConfig
from nmoe_flower.config.section import ALLOWED, Section, kebab, own_parts, shown
from nmoe_flower.config.text import TextConfig
from nmoe_flower.errors import ConfigError, did_you_mean
from nmoe_flower.files import read_toml, to_toml

__all__ = ["Config", "Override", "Scalar", "explain"]

Scalar = bool | int | float | str
Override = str | tuple[str, Any]
"""``key=value``, or a pair of key and value; the key is dotted."""

_SECTION_OF = {"fedsc": "contrast", "fedce": "extractor", "fedgate": "gate", "rollgate": "gate"}


class Config(Section):
    """A whole run."""

    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}))
    extractor: ExtractorConfig = Field(default_factory=lambda: ExtractorConfig.model_validate({}))
    contrast: FedSCConfig = Field(default_factory=lambda: FedSCConfig.model_validate({}))
    privacy: PrivacyConfig = Field(default_factory=lambda: PrivacyConfig.model_validate({}))
    head: HeadConfig = Field(default_factory=lambda: HeadConfig.model_validate({}))
    expert: ExpertConfig = Field(default_factory=lambda: ExpertConfig.model_validate({}))
    text: TextConfig = Field(default_factory=lambda: TextConfig.model_validate({}))
    adapter: AdapterConfig = Field(default_factory=lambda: AdapterConfig.model_validate({}))
    gate: GateConfig = Field(default_factory=lambda: GateConfig.model_validate({}))
    query: QueryConfig = Field(default_factory=lambda: QueryConfig.model_validate({}))
    alignment: AlignmentConfig = Field(default_factory=lambda: AlignmentConfig.model_validate({}))
    baseline: BaselineConfig = Field(default_factory=lambda: BaselineConfig.model_validate({}))
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig.model_validate({}))
    run: RunConfig = Field(default_factory=lambda: RunConfig.model_validate({}))

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        check_rules(self)
        return self

    def advice(self) -> list[str]:
        """What is allowed but rarely meant, in words."""
        return advice(self)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Read nested or dotted keys.

        Raises:
            ConfigError: A key is unknown or a value not allowed; every problem is named.

        >>> Config.parse({"gate.top-k": 2, "data": {"tau": 0.2}}).gate.top_k
        2
        """
        nested: dict[str, Any] = {}
        for key, value in values.items():
            _merge(nested, key.split("."), value)
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            raise ConfigError(explain(error, cls.model_fields)) from None

    @classmethod
    def load(
        cls,
        recipe: "Path | Config | Mapping[str, Any] | None" = None,
        overrides: Iterable[Override] = (),
    ) -> Self:
        """Read a recipe, and what goes before it.

        Args:
            recipe: A TOML file, or the folder of a run, published or not; or the same as a mapping
                of keys, dotted or in tables; or a configuration. None: all defaults.
            overrides: Pairs of a dotted key and its value, or texts ``key=value``.

        Raises:
            ConfigError: The file is missing or not TOML, or a key or value is not allowed.

        >>> Config.load({"gate": {"top-k": 2}}, ["data.tau=0.2", ("gate.rounds", 5)]).gate.rounds
        5
        """
        values: dict[str, Any] = {}
        for key, value in _content(recipe).items():
            try:
                _merge(values, str(key).split("."), value, once=True)
            except ConfigError as error:
                name = f" {recipe}" if isinstance(recipe, Path) else ""
                raise ConfigError(f"the recipe{name}: {error}") from None
        for override in overrides:
            if isinstance(override, str):
                key, equals, text = override.partition("=")
                if not equals or not key.strip():
                    raise ConfigError(f"--set wants key=value, got {override!r}")
                key = key.strip()
                value = _literal(text.strip(), _kind_of(key, cls.model_fields))
            else:
                key, value = override
            _merge(values, str(key).split("."), value)
        return cls.parse(values)

    @property
    def text_gates(self) -> tuple[str, ...]:
        """The configured gates that route text, in order; ``local`` where experts stay at home.

        FedGate is among them where there is validation text, which it is trained on.
        """
        if self.expert.sharing == "none":
            return ("local",)
        known = {**GATES, **TEXT_GATES}
        trained = bool(self.data.validation_per_client)
        return tuple(
            name
            for name in self.gate.methods
            if name in known and known[name].of_text and (trained or not _is_trained(name))
        )

    def asked_for_text(self, gate: str) -> int:
        """How many experts a gate asks about a text.

        Args:
            gate: The gate; ``posterior`` asks all, or the candidates.
        """
        if gate in TEXT_GATES and TEXT_GATES[gate].blends:
            return min(self.text.candidates or self.data.num_clients, self.data.num_clients)
        return self.gate.top_k

    @property
    def has_stage_1(self) -> bool:
        """Whether the system stands on the extractor of stage 1: trained, given or taken over."""
        if self.run.system == "aligned":
            return self.alignment.extractor == "stage-1"
        if self.run.system in BASELINES:
            return self.baseline.trunk == "stage-1"
        return self.run.system == "networked"

    @property
    def makes_passes(self) -> bool:
        """Whether correlation matrices come from passes over all own images, not from batches."""
        private = self.privacy.enabled or self.privacy.weights
        source = self.contrast.source
        return source == "pass" or (source == "auto" and private)

    @property
    def sums_come_first(self) -> bool:
        """Whether sums over the latents of the given backbone are where adapters begin."""
        return self.extractor.is_adapted and self.head.standardise

    @property
    def has_shortlists(self) -> bool:
        """Whether clients learn the gate from some of the experts: more than ``gate.shortlist``."""
        exchanged = self.run.system == "networked" and self.expert.sharing != "none"
        return exchanged and 0 < self.gate.shortlist < self.data.num_clients

    @property
    def starts_at_prototypes(self) -> bool:
        """Whether FedGate starts from the means of the clients' normalised latents."""
        if "federated" not in self.gate.methods or self.run.system != "networked":
            return False
        linear = self.gate.hidden == 0 and not self.has_embeddings
        return self.gate.start == "prototypes" or (
            self.gate.start == "auto" and self.has_shortlists and linear
        )

    @property
    def has_embeddings(self) -> bool:
        """Whether experts carry embeddings, which gates of stage 3 score latents against."""
        trained = {"federated", "global"} & set(self.gate.methods)
        return self.gate.form == "metric" and bool(trained) and self.expert.sharing != "none"

    @property
    def asks_normal_means(self) -> bool:
        """Whether the mean of every client's normalised latents leaves it, for stage 3."""
        return self.has_shortlists or self.starts_at_prototypes or self.has_embeddings

    def flat(self) -> dict[str, Scalar]:
        """The dotted form with scalar values only: Flower's run config.

        >>> Config.parse({}).flat()["gate.top-k"]
        1
        """
        return {
            f"{section}.{key}": ",".join(map(str, value)) if isinstance(value, tuple) else value
            for section, values in self.model_dump(by_alias=True).items()
            for key, value in values.items()
        }

    def own_names(self) -> list[tuple[str, str]]:
        """Keys whose value is somebody's own code, each with its ``package.module:Name``.

        >>> Config.parse({"gate.methods": "local,my_pkg.gates:Mine"}).own_names()
        [('gate.methods', 'my_pkg.gates:Mine')]
        """
        return [
            (f"{section}.{kebab(key)}", name)
            for section, values in self
            for key, field in type(values).model_fields.items()
            for name in own_parts(field, getattr(values, key))
        ]

    def to_toml(self) -> str:
        """The resolved configuration as a TOML recipe."""
        return to_toml(self.model_dump(by_alias=True, mode="json"))


def _is_trained(gate: str) -> bool:
    return gate.removesuffix(CHUNKS) == "federated"


def _content(recipe: Path | Config | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The keys that a recipe sets."""
    if isinstance(recipe, Config):
        return recipe.model_dump(by_alias=True, exclude_unset=True)
    if isinstance(recipe, Path):
        if recipe.is_dir() and is_run(recipe):
            return read_settings(recipe, what="the recipe")
        values = read_toml(recipe, what="the recipe")
        if "title" in values:
            raise ConfigError(
                f"{recipe} is a study, not a recipe: "
                f"{command_line('nmoe', 'study', 'run', recipe)} runs it, and nmoe study plan "
                "shows its runs"
            )
        return values
    return recipe or {}


def _merge(tree: dict[str, Any], path: list[str], value: Any, *, once: bool = False) -> None:
    """Set ``tree[a][b]... = value``, entering tables on the way.

    Args:
        tree: Gets the value; its keys are in kebab-case, whichever way they are given.
        path: The parts of the key.
        value: What it is set to; a table is merged into the one that is there.
        once: Refuse a key that is set already.

    Raises:
        ConfigError: A part of the path is a value; or the key is set, in another spelling.
    """
    *tables, leaf = [kebab(part) for part in path]
    for table in tables:
        branch = tree.setdefault(table, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"{'.'.join(path)}: {table} is a value, not a table")
        tree = branch
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _merge(tree, [leaf, *str(key).split(".")], inner, once=once)
        tree.setdefault(leaf, {})
    elif once and leaf in tree:
        raise ConfigError(f"the key {'.'.join(path)} stands there twice, in two spellings")
    else:
        tree[leaf] = value


def _literal(text: str, kind: object = None) -> Any:
    """Read the value of ``--set``: TOML where it is, plain text otherwise.

    Args:
        text: The value as it was typed.
        kind: The type of the key; for ``str`` only a quoted text is TOML, so that a data set may
            be called 2024 or true.

    >>> _literal("[8, 9]"), _literal("8,9"), _literal("2024"), _literal("2024", str)
    ([8, 9], '8,9', 2024, '2024')
    """
    try:
        tables = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # of TOML, and of numbers with too many digits
        return text
    value = tables["value"]
    if len(tables) > 1 or not isinstance(value, bool | int | float | str | list):
        return text
    return value if kind is not str or isinstance(value, str) else text


def _kind_of(key: str, fields: Mapping[str, Any]) -> object:
    """The type of a dotted key; None if there is no such key."""
    kind: object = None
    for part in key.split("."):
        field = next((f for name, f in fields.items() if part in (name, kebab(name))), None)
        kind = getattr(field, "annotation", None)
        fields = getattr(kind, "model_fields", {})
    return kind


def explain(error: ValidationError, fields: Mapping[str, Any]) -> str:
    """What is wrong with a section, one line per problem: the key, the value, what is allowed.

    Args:
        error: What reading it raised.
        fields: The fields of its model, for the key that was meant.
    """
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{_suggest(problem['loc'], problem['input'], fields)}"
        elif problem["type"] in {"model_type", "model_attributes_type"}:
            message = (
                f"is a section; set its keys, as in {key}.KEY=VALUE, got {shown(problem['input'])}"
            )
        elif problem["type"] == "missing":
            message = "is missing"
        elif allowed := _allowed_words(problem, fields):
            message = f"{shown(problem['input'])} is not allowed; allowed: {allowed}"
        elif problem["type"] in {"too_short", "string_too_short"}:
            message = f"{shown(problem['input'])} is not allowed; allowed: {_at_least(problem)}"
        elif problem["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {shown(problem['input'])}"
            if problem["type"] == "literal_error":
                names = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
                message += did_you_mean(str(problem["input"]), names)
        lines.append(f"{key}: {message}")
    return "\n".join(lines)


def _at_least(problem: Mapping[str, Any]) -> str:
    """How many entries, or characters, a value must have."""
    least, of_text = problem["ctx"]["min_length"], problem["type"] == "string_too_short"
    if least == 1:
        return "some text" if of_text else "one or more"
    return f"{least} {'characters ' if of_text else ''}or more"


def _allowed_words(problem: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """What a field with a pattern allows; nothing where the pattern is not what is wrong."""
    if problem["type"] != "string_pattern_mismatch":
        return ""
    field = None
    for part in problem["loc"]:
        field = next((one for name, one in fields.items() if kebab(name) == kebab(str(part))), None)
        fields = getattr(getattr(field, "annotation", None), "model_fields", {})
    told = getattr(field, "json_schema_extra", None)
    return str(told[ALLOWED]) if isinstance(told, Mapping) and ALLOWED in told else ""


def _suggest(location: tuple[int | str, ...], value: Any, fields: Mapping[str, Any]) -> str:
    """Name the closest known key, or all of them."""
    if section := _SECTION_OF.get(str(location[0])):  # a method's name, where its section is meant
        key = next(iter(value), None) if isinstance(value, Mapping) else None
        return f"; did you mean {section}{f'.{key}' if key else ''}?"
    for part in location[:-1]:
        section = fields[str(part)].annotation
        fields = section.model_fields
    known = sorted(kebab(name) for name in fields)
    return did_you_mean(kebab(str(location[-1])), known) or f"; known keys: {', '.join(known)}"
