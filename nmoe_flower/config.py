"""Frozen configuration, one model per component.

Keys are kebab-case. A recipe is a TOML file with one table per component; ``--set`` and Flower's
run config use the dotted form (``gate.top-k=2``). Flower's run config has no lists, so a list also
reads from comma-separated text (``"random,federated"``). Unknown keys are refused.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nmoe_flower.errors import ConfigError

__all__ = [
    "GATES",
    "Config",
    "DataConfig",
    "ExpertConfig",
    "ExtractorConfig",
    "GateConfig",
    "RunConfig",
    "Scalar",
]

Scalar = bool | int | float | str

GateName = Literal["random", "rolling", "federated", "local", "prototype", "global", "oracle"]
ControlName = Literal["fedavg", "local-classifier", "centralized"]
GATES: tuple[GateName, ...] = get_args(GateName)


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _split(value: Any) -> Any:
    """Read ``"a, b"`` as ``("a", "b")``; leave everything else to pydantic."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value,)
    return value


Ints = Annotated[tuple[int, ...], BeforeValidator(_split)]
Floats = Annotated[tuple[float, ...], BeforeValidator(_split)]
Gates = Annotated[tuple[GateName, ...], BeforeValidator(_split)]
Controls = Annotated[tuple[ControlName, ...], BeforeValidator(_split)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_kebab,
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


class DataConfig(_Section):
    """Which images, and who holds what."""

    dataset: str = Field("digits", description="digits, a hub name, or a local folder")
    cache_dir: str = Field("", description="decoded arrays; empty: ~/.cache/nmoe-flower")
    image_column: str = Field("", description="empty: found from the features")
    label_column: str = Field("", description="empty: found from the features")
    train_split: str = Field("train", description="name of the split clients train on")
    test_split: str = Field("test", description="of the test split; made from train if missing")
    num_clients: int = Field(10, ge=2, description="and experts: every client holds one")
    scheme: Literal["dominant", "iid", "dirichlet", "pathological"] = Field(
        "dominant", description="who holds what: one dominant class each, or as named"
    )
    tau: float = Field(0.3, gt=0, description="dominant share is 1 / (1 + tau)")
    alpha: float = Field(0.5, gt=0, description="concentration of the Dirichlet scheme")
    classes_per_client: int = Field(2, ge=1, description="for the pathological scheme")
    train_per_client: int = Field(0, ge=0, description="0: as many as balanced totals allow")
    test_per_client: int = Field(0, ge=0, description="0: as many as balanced totals allow")
    crop_padding: int = Field(1, ge=0, description="pixels; 0: no random crop")
    flip: bool = Field(False, description="random horizontal flip")
    cutout: int = Field(0, ge=0, description="side of the erased square in pixels; 0: none")


class ExtractorConfig(_Section):
    """Stage 1: how the shared feature extractor is trained."""

    method: Literal["fedce"] = Field("fedce", description="how the extractor is trained")
    reading: Literal["shared-head", "private-heads"] = Field(
        "shared-head", description="one head for all, then split; or a private head each (Eq. 2)"
    )
    backbone: Literal["digits", "narrow", "resnet18", "linear"] = Field(
        "digits", description="the network; linear only flattens"
    )
    norm: Literal["group", "group-ws", "batch", "frozen"] = Field(
        "group-ws", description="group-ws: GroupNorm with weight-standardised convolutions"
    )
    widths: Ints = Field((), description="channels per stage; empty: the backbone's own")
    stem: str = Field("", description="resnet18: cifar, pool or patch; empty: the backbone's own")
    pool: Literal["last", "last-mean", "last-max", "multi"] = Field(
        "last", description="where the latent is cut; multi adds earlier stages, pooled 3 x 3"
    )
    head: Literal["expert", "linear"] = Field(
        "expert", description="what stage 1 trains on the latents: an expert's MLP, or one layer"
    )
    rounds: int = Field(120, ge=0, description="of stage 1")
    local_steps: int = Field(1, ge=0, description="steps per round; 0: use local-epochs")
    local_epochs: int = Field(0, ge=0, description="epochs per round; 0: use local-steps")
    batch_size: int = Field(32, ge=1, description="images per client and step")
    learning_rate: float = Field(0.1, gt=0, description="the schedule's peak")
    schedule: Literal["triangular", "cosine", "constant"] = Field(
        "triangular", description="of the learning rate over the rounds"
    )
    warmup: float = Field(0.15, ge=0, lt=1, description="share of the rounds in which it rises")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov")
    momentum_at: Literal["server", "client", "averaged"] = Field(
        "server", description="server: exact momentum averaging for one-step rounds, no bytes"
    )
    server_learning_rate: float = Field(1.0, gt=0, description="1: take the clients' mean")
    weight_decay: float = Field(5e-4, ge=0, description="not of biases and norms")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share spread over all classes")
    logit_adjustment: float = Field(0.0, ge=0, description="times the client's log prior")
    max_grad_norm: float = Field(0.0, ge=0, description="0: no clipping")
    ema: float = Field(0.0, ge=0, lt=1, description="decay per round; 0: off")
    fraction_train: float = Field(1.0, gt=0, le=1, description="of the clients, every round")

    @model_validator(mode="after")
    def _one_measure_of_work(self) -> Self:
        if (self.local_steps > 0) == (self.local_epochs > 0):
            raise ValueError(
                "set exactly one of local-steps and local-epochs above 0, got "
                f"{self.local_steps} and {self.local_epochs}"
            )
        return self


class ExpertConfig(_Section):
    """Stage 2: the personal experts."""

    init: Literal["head", "fine-tune", "scratch"] = Field(
        "fine-tune", description="reuse the stage-1 head as it is, fine-tune it, or start anew"
    )
    hidden: Ints = Field((512, 256, 128), description="hidden widths; also those of the head")
    epochs: int = Field(10, ge=0, description="over the client's cached latents")
    batch_size: int = Field(64, ge=1, description="latents per step")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's peak, falling along a cosine")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's")
    logit_adjustment: float = Field(1.0, ge=0, description="times the client's log prior")
    sharing: Literal["weights", "latents", "none"] = Field(
        "weights",
        description="what leaves for stage 3: the expert, its answers to latents, or nothing",
    )


class GateConfig(_Section):
    """Stage 3: the shared gate, and how its answers are read."""

    methods: Gates = Field(GATES, description="the gates to train and evaluate")
    top_k: int = Field(1, ge=1, description="experts asked per sample")
    hidden: int = Field(0, ge=0, description="0: a linear gate")
    noisy: bool = Field(False, description="noisy top-k while training")
    rounds: int = Field(40, ge=1, description="of FedGate")
    local_steps: int = Field(5, ge=1, description="per round and client")
    batch_size: int = Field(64, ge=1, description="latents per step")
    learning_rate: float = Field(0.05, gt=0, description="falls along a cosine over the rounds")
    fraction_train: float = Field(0.7, gt=0, le=1, description="exactly round(f N) clients")
    objective: Literal["dense", "distill", "switch", "straight-through"] = Field(
        "dense", description="what FedGate minimises on the hold-out"
    )
    temperature: float = Field(1.0, gt=0, description="of the distilled targets")
    balance: float = Field(0.0, ge=0, description="weight of the load-balance loss")
    normalise_gradient: bool = Field(True, description="every gradient has norm 1")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of the training images")
    keep: float = Field(0.7, gt=0, le=1, description="RollGate's p: targets that stay at home")
    rolling: Literal["cyclic", "federated"] = Field(
        "cyclic", description="client after client until convergence, or FedAvg of those targets"
    )
    cycles: int = Field(10, ge=1, description="RollGate's limit of cycles through the clients")
    distribution: Floats = Field((), description="RanGate's; empty: uniform")
    prior: Literal["chosen", "own", "em", "none"] = Field(
        "chosen", description="the client-aware prior correction of the +prior rows"
    )

    @model_validator(mode="after")
    def _at_least_one_gate(self) -> Self:
        if not self.methods:
            raise ValueError(f"name at least one gate of {', '.join(GATES)}")
        return self


class RunConfig(_Section):
    """The run itself: name, seed, device, deadlines, checkpoints."""

    name: str = Field(
        "nmoe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the run folder"
    )
    out: str = Field("", description="results folder; empty: ./runs, or ~/nmoe-runs under flwr run")
    seed: int = Field(0, ge=0, description="of every random choice")
    device: str = Field(
        "cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$", description="cpu, cuda, cuda:1, mps"
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="auto: bf16 where the device computes in it"
    )
    controls: Controls = Field(
        ("fedavg", "local-classifier", "centralized"), description="what to compare with"
    )
    control_epochs: int = Field(0, ge=0, description="0: as many steps as stage 1 took")
    control_learning_rate: float = Field(3e-3, gt=0, description="AdamW's peak for the controls")
    evaluate_every: int = Field(0, ge=0, description="rounds; 0: about ten times in stage 1")
    checkpoint_every: int = Field(0, ge=0, description="rounds; 0: about every half minute")
    keep_checkpoints: int = Field(2, ge=1, description="the newest are kept")
    min_replies: int = Field(1, ge=1, description="usable replies a round needs")
    connect_timeout: float = Field(120.0, gt=0, description="seconds to wait for the nodes")
    round_timeout: float = Field(3600.0, gt=0, description="seconds a round may take")

    def folder(self, run_id: int) -> Path:
        """Where this run is kept: ``out/name``, or a folder of its own per Flower run."""
        if self.out:
            return Path(self.out).expanduser() / self.name
        return Path.home() / "nmoe-runs" / f"{self.name}-{run_id}"


class Config(_Section):
    """A whole run."""

    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}))
    extractor: ExtractorConfig = Field(default_factory=lambda: ExtractorConfig.model_validate({}))
    expert: ExpertConfig = Field(default_factory=lambda: ExpertConfig.model_validate({}))
    gate: GateConfig = Field(default_factory=lambda: GateConfig.model_validate({}))
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
                f"gate.distribution has {len(self.gate.distribution)} entries for {clients} experts"
            )
        if self.expert.init != "scratch" and self.extractor.head == "linear" and self.expert.hidden:
            raise ValueError(
                f"expert.init = {self.expert.init} starts from the stage-1 head, but "
                "extractor.head is linear and expert.hidden is not empty: "
                "use expert.init = scratch, extractor.head = expert or an empty expert.hidden"
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

    def advice(self) -> list[str]:
        """What is allowed but rarely meant, in words."""
        notes = []
        if self.extractor.norm == "batch" and self.data.scheme != "iid":
            notes.append(
                f"extractor.norm = batch under data.scheme = {self.data.scheme}: averaging "
                "BatchNorm's statistics over skewed clients costs most of the accuracy; "
                "group-ws does not mix images"
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
            _merge(nested, key.split("."), value)
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None

    @classmethod
    def load(cls, recipe: Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a TOML recipe and ``key=value`` overrides.

        Raises:
            ConfigError: The file is missing or not TOML, or a key or value is not allowed.
        """
        values: dict[str, Any] = {}
        if recipe is not None:
            try:
                values = tomllib.loads(recipe.read_text(encoding="utf-8"))
            except OSError as error:
                raise ConfigError(f"cannot read the recipe {recipe}: {error.strerror}") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{recipe} is not valid TOML: {error}") from None
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"--set wants key=value, got {override!r}")
            _merge(values, key.strip().split("."), _literal(text.strip()))
        return cls.parse(values)

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
        lines: list[str] = []
        for section, values in self.model_dump(by_alias=True, mode="json").items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
            lines.append("")
        return "\n".join(lines)


def _merge(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Set ``tree[a][b]... = value``, entering tables on the way."""
    *tables, leaf = path
    for table in tables:
        branch = tree.setdefault(table, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"{'.'.join(path)}: {table} is a value, not a table")
        tree = branch
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _merge(tree, [leaf, *str(key).split(".")], inner)
        tree.setdefault(leaf, {})
    else:
        tree[leaf] = value


def _literal(text: str) -> Any:
    """Read the value of ``--set``: TOML where it is, plain text otherwise."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError) -> str:
    """One line per problem: the key, the value, what is allowed."""
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{_suggest(problem['loc'])}"
        elif problem["type"] not in {"value_error", "missing"}:
            message = f"{message[0].lower()}{message[1:]}, got {problem['input']!r}"
        lines.append(f"{key}: {message}")
    return "\n".join(lines)


def _suggest(location: tuple[int | str, ...]) -> str:
    """Name the closest known key, or all of them."""
    import difflib

    fields: Mapping[str, Any] = Config.model_fields
    for part in location[:-1]:
        section = fields[str(part)].annotation
        fields = section.model_fields
    known = sorted(_kebab(name) for name in fields)
    close = difflib.get_close_matches(_kebab(str(location[-1])), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"
