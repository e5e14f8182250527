"""A whole run's configuration, and the ways in and out of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from nmoe_flower.config.alignment import AlignmentConfig
from nmoe_flower.config.data import DataConfig
from nmoe_flower.config.expert import ExpertConfig
from nmoe_flower.config.extractor import ExtractorConfig
from nmoe_flower.config.fedsc import ContrastConfig
from nmoe_flower.config.gate import GateConfig
from nmoe_flower.config.head import HeadConfig
from nmoe_flower.config.privacy import PrivacyConfig, weights_refusal
from nmoe_flower.config.reading import explain, kind_of, literal, merge
from nmoe_flower.config.run import RunConfig
from nmoe_flower.config.section import Section
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import read_toml, to_toml

__all__ = ["Config", "Override", "Scalar"]

Scalar = bool | int | float | str
Override = str | tuple[str, Any]
"""``key=value``, or a pair of key and value; the key is dotted."""


class Config(Section):
    """A whole run."""

    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}))
    extractor: ExtractorConfig = Field(default_factory=lambda: ExtractorConfig.model_validate({}))
    contrast: ContrastConfig = Field(default_factory=lambda: ContrastConfig.model_validate({}))
    privacy: PrivacyConfig = Field(default_factory=lambda: PrivacyConfig.model_validate({}))
    head: HeadConfig = Field(default_factory=lambda: HeadConfig.model_validate({}))
    expert: ExpertConfig = Field(default_factory=lambda: ExpertConfig.model_validate({}))
    gate: GateConfig = Field(default_factory=lambda: GateConfig.model_validate({}))
    alignment: AlignmentConfig = Field(default_factory=lambda: AlignmentConfig.model_validate({}))
    run: RunConfig = Field(default_factory=lambda: RunConfig.model_validate({}))

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        clients = self.data.num_clients
        if self.gate.top_k > clients:
            raise ValueError(
                f"gate.top-k is {self.gate.top_k} but there are only {clients} experts "
                "(data.num-clients)"
            )
        if self.gate.distribution and len(self.gate.distribution) != clients:
            raise ValueError(
                f"gate.distribution has {len(self.gate.distribution)} entries for {clients} "
                f"experts, got {', '.join(map(str, self.gate.distribution))}"
            )
        experts = self.alignment.experts or clients
        if self.run.system == "aligned" and self.alignment.top_k > experts:
            raise ValueError(
                f"alignment.top-k is {self.alignment.top_k} but there are only {experts} experts "
                "(alignment.experts, or data.num-clients)"
            )
        if self.expert.init != "scratch" and self.extractor.head == "linear" and self.expert.hidden:
            raise ValueError(
                f"expert.init = {self.expert.init} starts from the stage-1 head, but "
                "extractor.head is linear and expert.hidden is not empty: "
                "use expert.init = scratch, extractor.head = expert or an empty expert.hidden"
            )
        if self.extractor.shares_head and self.head.rounds:
            raise ValueError(
                f"head.rounds = {self.head.rounds} trains a head where stage 1 leaves none, and "
                f"extractor.method = fedce leaves one: use 0"
            )
        headless = not self.extractor.shares_head and not self.head.rounds
        if self.extractor.method == "fedsc" and self.expert.init == "head" and headless:
            raise ValueError(
                "expert.init = head needs a head, and extractor.method = fedsc trains "
                "without labels: set head.rounds, or use scratch"
            )
        contrastive = self.extractor.method == "fedsc"
        if contrastive and self.contrast.unbiased and self.extractor.batch_size == 1:
            raise ValueError(
                "extractor.batch-size = 1 leaves extractor.method = fedsc without negatives: "
                "use at least 2"
            )
        if contrastive and self.contrast.first > self.extractor.rounds:
            raise ValueError(
                f"contrast.first is {self.contrast.first} and there are "
                f"extractor.rounds = {self.extractor.rounds}: no matrix would ever be shared; "
                "if that is meant: contrast.share = own"
            )
        size = self.data.train_per_client
        if (self.privacy.enabled or self.privacy.weights) and size * self.privacy.delta >= 1:
            raise ValueError(
                f"privacy.delta must be below 1 / images = {1 / size:.3g} of a client "
                f"(data.train-per-client), got {self.privacy.delta:g}"
            )
        if self.privacy.enabled and not contrastive:
            raise ValueError(
                "privacy.enabled covers the correlation matrices of extractor.method = fedsc, got "
                f"extractor.method = {self.extractor.method}"
            )
        if self.privacy.enabled and self.privacy.adjacency == "add-remove":
            raise ValueError(
                "privacy.adjacency = add-remove hides how many images there are, and a run divides "
                "matrices by their number, which travels in clear: use replace-one"
            )
        if self.privacy.enabled and self.contrast.source == "batches":
            raise ValueError(
                "privacy.enabled needs matrices in which every image counts once: set "
                "contrast.source = pass or auto, got batches"
            )
        if self.expert.sharing == "none" and set(self.gate.methods) != {"local"}:
            raise ValueError(
                "expert.sharing = none leaves every expert at home: the only gate then is local, "
                f"got gate.methods = {', '.join(self.gate.methods)}"
            )
        if self.run.min_replies > clients:
            raise ValueError(
                f"run.min-replies is {self.run.min_replies} but there are {clients} clients"
            )
        return self

    @model_validator(mode="after")
    def _networks_can_read_the_data(self) -> Self:
        if self.data.kind == "images":
            return self
        if self.extractor.backbone in ("digits", "narrow", "resnet18"):
            raise ValueError(
                f"extractor.backbone = {self.extractor.backbone} reads images, and data.kind is "
                "features: use mlp or linear"
            )
        if self.contrast.view_size:
            raise ValueError(
                f"contrast.view-size = {self.contrast.view_size} is for images, and data.kind is "
                "features: use 0"
            )
        if self.run.system == "aligned" and self.alignment.extractor == "filters":
            raise ValueError(
                "alignment.extractor = filters reads images, and data.kind is features: use trained"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_be_private(self) -> Self:
        if self.privacy.weights and (reason := weights_refusal(self.extractor, self.contrast)):
            raise ValueError(f"privacy.weights {reason}")
        return self

    def advice(self) -> list[str]:
        """What is allowed but rarely meant, in words."""
        notes = self.alignment.advice(self.data.num_clients) if self.run.system == "aligned" else []
        if self.extractor.norm == "batch" and self.data.scheme != "iid":
            notes.append(
                f"extractor.norm = batch under data.scheme = {self.data.scheme}: averaging "
                "BatchNorm's statistics over skewed clients costs most of the accuracy; "
                "group-ws does not mix images"
            )
        if (self.privacy.enabled or self.privacy.weights) and not self.privacy.secure:
            notes.append(
                "privacy.secure = false: noise comes from run.seed, and whoever knows it can take "
                "it out again; fine for a simulation, not for a deployment"
            )
        if (self.privacy.enabled or self.privacy.weights) and self.data.kind == "features":
            notes.append(
                "data.kind = features: no privacy budget covers data.feature-means and "
                "data.feature-deviations; give them from what is public"
            )
        if self.data.partition_column and self.data.scheme != "natural":
            notes.append(
                f"data.partition-column = {self.data.partition_column} is no feature, and "
                f"data.scheme = {self.data.scheme} does not look at it; natural does"
            )
        if "global" in self.gate.methods or "centralized" in self.run.controls:
            notes.append(
                "the global gate and the centralized control pool the clients' data: upper bounds "
                "for simulations, not for deployment"
            )
        return notes

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
            merge(nested, key.split("."), value)
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
            recipe: A TOML file; or the same as a mapping of keys, dotted or in tables; or a
                configuration. None: all defaults.
            overrides: Pairs of a dotted key and its value, or texts ``key=value``.

        Raises:
            ConfigError: The file is missing or not TOML, or a key or value is not allowed.

        >>> Config.load({"gate": {"top-k": 2}}, ["data.tau=0.2", ("gate.rounds", 5)]).gate.rounds
        5
        """
        values: dict[str, Any] = {}
        for key, value in _content(recipe).items():
            try:
                merge(values, str(key).split("."), value, once=True)
            except ConfigError as error:
                name = f" {recipe}" if isinstance(recipe, Path) else ""
                raise ConfigError(f"the recipe{name}: {error}") from None
        for override in overrides:
            if isinstance(override, str):
                key, equals, text = override.partition("=")
                if not equals or not key.strip():
                    raise ConfigError(f"--set wants key=value, got {override!r}")
                key = key.strip()
                value = literal(text.strip(), kind_of(key, cls.model_fields))
            else:
                key, value = override
            merge(values, str(key).split("."), value)
        return cls.parse(values)

    @property
    def makes_passes(self) -> bool:
        """Whether correlation matrices come from passes over all own images, not from batches."""
        private = self.privacy.enabled or self.privacy.weights
        source = self.contrast.source
        return source == "pass" or (source == "auto" and private)

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

    def to_toml(self) -> str:
        """The resolved configuration as a TOML recipe."""
        return to_toml(self.model_dump(by_alias=True, mode="json"))


def _content(recipe: Path | Config | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The keys that a recipe sets."""
    if isinstance(recipe, Config):
        return recipe.model_dump(by_alias=True, exclude_unset=True)
    if isinstance(recipe, Path):
        return read_toml(recipe, what="the recipe")
    return recipe or {}
