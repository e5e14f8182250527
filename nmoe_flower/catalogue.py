"""What comes along by name, a row each: gates, backbones, schemes, policies and more.

For the first system gates, their objectives, methods of stage 1, controls and backbones; for the
second policies and ways of its gate; published systems; for language the controls of its
adapters; for all of them schemes that share a data set out, domains to see it in, and trackers.

A row is all that is to be added beside the code itself: commands, costs, tests and reports go by
these tables. Reading them loads nothing. Where a row says ``module:name``, `found` loads that for
whoever needs it, so that a server never loads what only a device runs.
"""

import pkgutil
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "ADAPTER_CONTROLS",
    "ALIGNMENT_GATES",
    "AVERAGED",
    "BACKBONES",
    "BASELINES",
    "BASELINE_ANSWERS",
    "CHUNKS",
    "CONTROLS",
    "DOMAINS",
    "GATES",
    "GIVEN",
    "LANGUAGE_MODELS",
    "METHODS",
    "OBJECTIVES",
    "POLICIES",
    "SCHEMES",
    "TESTS",
    "TEXT_GATES",
    "TRACKERS",
    "VALIDATION",
    "AdapterControlEntry",
    "AlignmentGateEntry",
    "BackboneEntry",
    "BaselineEntry",
    "ControlEntry",
    "GateEntry",
    "GivenEntry",
    "MethodEntry",
    "PolicyEntry",
    "SchemeEntry",
    "TrackerEntry",
    "found",
]


@dataclass(frozen=True)
class GateEntry:
    """One gate: built at a device as it is, or trained in stage 3.

    Attributes:
        router: ``module:Class``, whose ``at(site)`` builds it from a `nmoe_flower.models.GateSite`;
            empty: its trained weights go into a `nmoe_flower.models.Gate`.
        trainer: ``module:NAME`` of the `GateTrainer` that makes its weights; empty: none.
        prototypes: It needs the mean latent of every client, which leaves the devices for it.
        upper_bound: It is trained or chosen with what no device has.
        pools: Everybody's data meets at one place: for simulations only.
        plain: Whether the routing is known without looking, so that no figure is drawn of it.
        holdout: Each device makes it of the experts' answers to its hold-out.
        solved: The trainer reads sums over latents, and no expert's answers.
        owners: It is told whose each sample of a test is, which the scheme ``natural`` knows.
        answers: It looks at the experts' answers before it chooses one.
        usual: It is among ``gate.methods`` unless these are named.
        of_text: It can route text, too.
        frequencies: It needs how often each client's text has each token, which leaves for it.
        states: For text it is linear in hidden states of the frozen backbone.
        chunks: It decides again every ``text.chunk`` tokens.
        blends: It mixes all experts that may be asked, whatever ``gate.top-k`` says.
    """

    router: str = ""
    trainer: str = ""
    prototypes: bool = False
    upper_bound: bool = False
    pools: bool = False
    plain: bool = False
    holdout: bool = False
    solved: bool = False
    owners: bool = False
    answers: bool = False
    usual: bool = True
    of_text: bool = False
    frequencies: bool = False
    states: bool = False
    chunks: bool = False
    blends: bool = False


# In the order of tables and figures.
GATES = {
    "random": GateEntry(router="nmoe_flower.models:RandomGate", plain=True),
    "rolling": GateEntry(trainer="nmoe_flower.pipeline.networked.gate:ROLLING"),
    "federated": GateEntry(
        trainer="nmoe_flower.pipeline.networked.gate:FEDERATED", of_text=True, states=True
    ),
    "local": GateEntry(router="nmoe_flower.models:LocalGate", plain=True, of_text=True),
    "prototype": GateEntry(
        router="nmoe_flower.models:PrototypeGate", prototypes=True, of_text=True, states=True
    ),
    "client-weights": GateEntry(
        router="nmoe_flower.models:ClientWeightsGate", holdout=True, usual=False
    ),
    "lda": GateEntry(
        trainer="nmoe_flower.pipeline.networked.sums:LDA",
        solved=True,
        usual=False,
        of_text=True,
        states=True,
    ),
    "global": GateEntry(
        trainer="nmoe_flower.pipeline.networked.gate:GLOBAL", upper_bound=True, pools=True
    ),
    "domain": GateEntry(
        router="nmoe_flower.models:DomainGate",
        upper_bound=True,
        plain=True,
        owners=True,
        usual=False,
        of_text=True,
    ),
    "oracle": GateEntry(
        router="nmoe_flower.models:OracleGate",
        upper_bound=True,
        plain=True,
        answers=True,
        of_text=True,
    ),
}


# Gates that only text has.
TEXT_GATES = {
    "unigram": GateEntry(of_text=True, frequencies=True),
    "unigram-chunks": GateEntry(of_text=True, frequencies=True, chunks=True, usual=False),
    "likelihood": GateEntry(of_text=True),
    "likelihood-chunks": GateEntry(of_text=True, chunks=True, usual=False),
    "posterior": GateEntry(of_text=True, blends=True),
    "prototype-chunks": GateEntry(of_text=True, states=True, chunks=True, usual=False),
    "lda-chunks": GateEntry(of_text=True, states=True, chunks=True, usual=False),
    "federated-chunks": GateEntry(of_text=True, states=True, chunks=True, usual=False),
}
CHUNKS: Final = "-chunks"
"""What the name of a gate of text ends in, if it decides chunk by chunk as the one without does."""


# What gates are trained by: a function of scores, the experts' logits and labels each.
OBJECTIVES = {
    "dense": "nmoe_flower.losses:dense_mixture",
    "distill": "nmoe_flower.losses:oracle_distillation",
    "switch": "nmoe_flower.losses:switch_top1",
    "straight-through": "nmoe_flower.losses:straight_through",
}


@dataclass(frozen=True)
class MethodEntry:
    """One way to train the extractor in stage 1.

    Attributes:
        label: What tables call it.
        strategy: ``module:name`` of what makes the server half from a `Config`.
        initial: ``module:name`` of what gives the first weights at a device.
        given: Nothing is trained, in no round: the extractor is on every device before.
    """

    label: str
    strategy: str
    initial: str
    given: bool = False


METHODS = {
    "fedce": MethodEntry(
        "FedCE",
        strategy="nmoe_flower.pipeline.networked.extractor:fedce",
        initial="nmoe_flower.clients.fedce:initial",
    ),
    "fedsc": MethodEntry(
        "FedSC",
        strategy="nmoe_flower.pipeline.networked.extractor:fedsc",
        initial="nmoe_flower.clients.fedsc:initial",
    ),
    "pretrained": MethodEntry(
        "pretrained",
        strategy="",
        initial="nmoe_flower.clients.pretrained:initial",
        given=True,
    ),
}


@dataclass(frozen=True)
class ControlEntry:
    """One thing that the mixture is measured against; in results it is ``control:<name>``.

    Attributes:
        label: The control's name in figures.
        trained: Clients train it for this purpose; False: stages 1 and head leave it anyway.
        pools: Everybody's data meets at one place: for simulations only.
        usual: It is among ``run.controls`` unless these are named.
    """

    label: str
    trained: bool = True
    pools: bool = False
    usual: bool = True


CONTROLS = {
    "fedavg": ControlEntry("FedAvg", trained=False),
    "ridge": ControlEntry("ridge head", trained=False, usual=False),
    "local-classifier": ControlEntry("local classifier"),
    "centralized": ControlEntry("centralized MoE", pools=True),
    "pooled-head": ControlEntry("pooled head", pools=True, usual=False),
}


@dataclass(frozen=True)
class AdapterControlEntry:
    """One thing that a mixture of adapters is measured against; ``control:<name>`` in results.

    Attributes:
        label: The control's name in figures.
        averaged: It is one adapter for all, trained by rounds of FedAvg.
        exact: The mean product of the clients' factors, not the product of their means.
        frozen: A stays as it was drawn; B alone is trained and travels.
        large: It has ``adapter.times`` the rank of an expert.
    """

    label: str
    averaged: bool = False
    exact: bool = False
    frozen: bool = False
    large: bool = False


ADAPTER_CONTROLS = {
    "frozen": AdapterControlEntry("frozen backbone"),
    "soup": AdapterControlEntry("mean of the experts"),
    "uniform": AdapterControlEntry("all experts alike"),
    "fedavg": AdapterControlEntry("FedAvg", averaged=True),
    "fedavg-frozen-a": AdapterControlEntry("FedAvg, A as drawn", averaged=True, frozen=True),
    "fedavg-exact": AdapterControlEntry("FedAvg, exact product", averaged=True, exact=True),
    "fedavg-large": AdapterControlEntry("FedAvg, larger", averaged=True, large=True),
}
# What may stand in for any expert, the first that a run has.
AVERAGED = tuple(name for name, entry in ADAPTER_CONTROLS.items() if entry.averaged)


@dataclass(frozen=True)
class BackboneEntry:
    """One backbone.

    Attributes:
        builder: ``module:name`` of what makes the network from ``in_channels``, ``image_size``
            (height, width), ``norm``, ``widths`` and ``stem`` (None: its own) and ``pool``.
        reads: Kinds of data it can read, as in ``data.kind``.
        bf16: Whether ``run.precision = auto`` computes in bfloat16 where the device is faster in
            it: all do, but those so small that converting takes longer than computing.
    """

    builder: str
    reads: tuple[str, ...] = ("images",)
    bf16: bool = True


BACKBONES = {
    "digits": BackboneEntry("nmoe_flower.models.extractor:DIGITS", bf16=False),
    "narrow": BackboneEntry("nmoe_flower.models.extractor:NARROW"),
    "resnet18": BackboneEntry("nmoe_flower.models.extractor:RESNET18"),
    "mlp": BackboneEntry(
        "nmoe_flower.models.extractor:build_mlp", reads=("images", "features"), bf16=False
    ),
    "linear": BackboneEntry(
        "nmoe_flower.models.extractor:build_linear", reads=("images", "features"), bf16=False
    ),
    "narrow-residual": BackboneEntry("nmoe_flower.models.extractor:NARROW_RESIDUAL"),
}


# Given models of text by name, and what opens each from a `nmoe_flower.models.LanguageWish`; any
# other of transformers is ``transformers:NAME``.
LANGUAGE_MODELS = {
    "small-lm": "nmoe_flower.models.language:small_lm",
    "smollm2-135m": "nmoe_flower.models.language:smollm2",
}


@dataclass(frozen=True)
class GivenEntry:
    """One place that backbones come from which somebody else has trained.

    Attributes:
        opener: ``module:name`` of what makes a `nmoe_flower.models.Given` from a
            `nmoe_flower.models.Wish`.
        names: Whether it has many: ``timm:NAME``.
    """

    opener: str
    names: bool = False


# For ``extractor.method = pretrained``.
GIVEN = {
    "efficientnet-lite0": GivenEntry("nmoe_flower.models.libraries:efficientnet_lite0"),
    "torchvision": GivenEntry("nmoe_flower.models.libraries:of_torchvision", names=True),
    "timm": GivenEntry("nmoe_flower.models.libraries:of_timm", names=True),
    "transformers": GivenEntry("nmoe_flower.models.libraries:of_transformers", names=True),
}


@dataclass(frozen=True)
class SchemeEntry:
    """One way to share a data set out among clients.

    Attributes:
        sharing: ``module:NAME`` of its `nmoe_flower.data.schemes.SharingScheme`.
        key: The configuration's key that says how skewed it is; empty: none does.
    """

    sharing: str
    key: str = ""


SCHEMES = {
    "dominant": SchemeEntry("nmoe_flower.data.schemes:DOMINANT", key="data.tau"),
    "iid": SchemeEntry("nmoe_flower.data.schemes:IID"),
    "dirichlet": SchemeEntry("nmoe_flower.data.schemes:DIRICHLET", key="data.alpha"),
    "pathological": SchemeEntry(
        "nmoe_flower.data.schemes:PATHOLOGICAL", key="data.classes-per-client"
    ),
    "natural": SchemeEntry("nmoe_flower.data.schemes:NATURAL"),
}


# In what devices may see images: a function each, of images uint8 [n, H, W, channels] alone.
DOMAINS = {
    "clean": "nmoe_flower.data.domains:clean",
    "rot90": "nmoe_flower.data.domains:rot90",
    "rot180": "nmoe_flower.data.domains:rot180",
    "rot270": "nmoe_flower.data.domains:rot270",
    "invert": "nmoe_flower.data.domains:invert",
    "gray": "nmoe_flower.data.domains:gray",
    "blur": "nmoe_flower.data.domains:blur",
    "jpeg5": "nmoe_flower.data.domains:jpeg5",
    "noise": "nmoe_flower.data.domains:noisy",
    "zoom": "nmoe_flower.data.domains:zoom",
}


# What every client is tested on, in the order of tables, and how these call it: samples skewed like
# its own, of every class alike, and training samples on which nobody trains.
VALIDATION: Final = "validation"
TESTS = {"local": "Local", "iid": "IID", VALIDATION: "Validation"}


@dataclass(frozen=True)
class PolicyEntry:
    """One way to decide who trains which experts in a round of the alignment system.

    Attributes:
        chooser: ``module:name`` of the function that decides.
        bounds: It takes ``lo`` and ``hi``, the least and most clients of an expert.
        covers: It leaves no expert without a client, so there must be a slot for each.
        deficits: What experts still lack of their share counts in what it is given.
        truth: It needs the true affinities, which only a simulation has: an upper bound.
    """

    chooser: str
    bounds: bool = False
    covers: bool = False
    deficits: bool = False
    truth: bool = False


# In the order of tables and figures.
POLICIES = {
    "random": PolicyEntry("nmoe_flower.alignment.policies:choose_random"),
    "greedy": PolicyEntry("nmoe_flower.alignment.policies:choose_greedy"),
    "balanced": PolicyEntry("nmoe_flower.alignment.policies:choose_balanced"),
    "sequential": PolicyEntry(
        "nmoe_flower.alignment.policies:choose_sequential", covers=True, deficits=True
    ),
    "joint": PolicyEntry(
        "nmoe_flower.alignment.policies:choose_joint", bounds=True, covers=True, deficits=True
    ),
    "oracle": PolicyEntry(
        "nmoe_flower.alignment.policies:choose_oracle", bounds=True, covers=True, truth=True
    ),
}


@dataclass(frozen=True)
class AlignmentGateEntry:
    """One way of the alignment system's gate between server and clients.

    Attributes:
        sharing: ``module:name`` of what makes the `nmoe_flower.strategies.GateSharing` from a
            `Config`.
        stays: Every client keeps a gate of its own.
        solved: Clients send statistics, and nobody trains it; the extractor must not move.
    """

    sharing: str
    stays: bool = False
    solved: bool = False


ALIGNMENT_GATES = {
    "averaged": AlignmentGateEntry("nmoe_flower.pipeline.alignment.train:averaged_gate"),
    "local": AlignmentGateEntry("nmoe_flower.pipeline.alignment.train:unshared_gate", stays=True),
    "travelling": AlignmentGateEntry("nmoe_flower.pipeline.alignment.train:travelling_gate"),
    "closed-form": AlignmentGateEntry(
        "nmoe_flower.pipeline.alignment.train:solved_gate", solved=True
    ),
}


@dataclass(frozen=True)
class BaselineEntry:
    """One published system, for ``run.system``.

    Attributes:
        label: What tables call it.
        citation: Where it was published.
        system: ``module:NAME`` of its `nmoe_flower.baselines.Baseline`: both halves.
        league: Whether it is made for one model for everybody (``global``) or a model for each
            client (``personal``): the first is compared by the test ``iid``, the second by
            ``local``.
        assumes: What a client keeps, and whatever is needed beside data and labels at home.
        several: It has ``baseline.experts`` experts, which may be whole networks.
        partial: A client holds ``baseline.held`` of them.
        bounded: ``baseline.lo`` and ``baseline.hi`` bound how many clients train each.
        reads_labels: The server reads how many images of each class each client has.
        shares_trunk: A trunk is all that clients share, so a given one leaves them nothing.
        needs_given: It learns on latents of a given extractor only.
        answers: The gates of its rows in results, where they are not just its name.
        options: Keys of ``baseline.*`` that it reads and others do not, beside those that the
            fields before stand for: `reads` tells all of them.
    """

    label: str
    citation: str
    system: str
    league: str
    assumes: str
    several: bool = False
    partial: bool = False
    bounded: bool = False
    reads_labels: bool = False
    shares_trunk: bool = False
    needs_given: bool = False
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The keys of ``baseline.*`` that it reads and not every system does.

        >>> BASELINES["flex-moe"].reads
        ('experts', 'size', 'held', 'lo', 'hi')
        """
        experts = ("experts", "size") * self.several
        bounds = ("lo", "hi") * self.bounded
        return (*experts, *("held",) * self.partial, *bounds, *self.options)


_TUNING = ("tuning-steps", "tuning-learning-rate", "tuning-momentum", "tuning-batch-size")

BASELINES = {
    "fedavg": BaselineEntry(
        "FedAvg",
        "McMahan et al. 2017, arXiv:1602.05629",
        "nmoe_flower.baselines.fedavg:FEDAVG",
        league="global",
        assumes="nothing; beside it: its head fine-tuned, own training alone, the most frequent "
        "class",
        answers=("fedavg", "fine-tuned", "own", "majority"),
        options=_TUNING,
    ),
    "fedprox": BaselineEntry(
        "FedProx",
        "Li et al. 2020, arXiv:1812.06127",
        "nmoe_flower.baselines.fedprox:FEDPROX",
        league="global",
        assumes="nothing",
        options=("proximal",),
    ),
    "ditto": BaselineEntry(
        "Ditto",
        "Li et al. 2021, arXiv:2012.04221",
        "nmoe_flower.baselines.ditto:DITTO",
        league="personal",
        assumes="a second network at home, twice the steps",
        answers=("ditto", "ditto-global"),
        options=("proximal",),
    ),
    "fedper": BaselineEntry(
        "FedPer",
        "Arivazhagan et al. 2019, arXiv:1912.00818",
        "nmoe_flower.baselines.fedper:FEDPER",
        league="personal",
        assumes="a head at home",
        shares_trunk=True,
    ),
    "fedrep": BaselineEntry(
        "FedRep",
        "Collins et al. 2021, arXiv:2102.07078",
        "nmoe_flower.baselines.fedrep:FEDREP",
        league="personal",
        assumes="a head at home",
        shares_trunk=True,
    ),
    "pfl-moe": BaselineEntry(
        "PFL-MoE",
        "Guo et al. 2020, arXiv:2012.15589",
        "nmoe_flower.baselines.pfl_moe:PFL_MOE",
        league="personal",
        assumes="a head and two gates at home; nothing is sent after FedAvg",
        answers=("pfl-mf", "pfl-mfe", "pfl-fb", "fedavg"),
        options=_TUNING,
    ),
    "fedem": BaselineEntry(
        "FedEM",
        "Marfoq et al. 2021, arXiv:2108.10252",
        "nmoe_flower.baselines.fedem:FEDEM",
        league="personal",
        assumes="every client holds all experts; its mixture weights stay at home",
        several=True,
        answers=("fedem", "uniform", "random", "oracle"),
    ),
    "fedmix": BaselineEntry(
        "FedMix",
        "Reisser et al. 2021, arXiv:2107.06724",
        "nmoe_flower.baselines.fedmix:FEDMIX",
        league="personal",
        assumes="every client holds all experts; its gate stays at home",
        several=True,
        answers=("fedmix", "uniform", "random", "oracle"),
    ),
    "fedmoe": BaselineEntry(
        "FedMoE",
        "Mei et al. 2024, arXiv:2408.11304",
        "nmoe_flower.baselines.fedmoe:FEDMOE",
        league="personal",
        assumes="a client holds some of the experts; the server knows how each client uses them",
        several=True,
        partial=True,
        answers=("fedmoe", "uniform", "random", "oracle"),
    ),
    "flex-moe": BaselineEntry(
        "FLEX-MoE",
        "Zhang et al. 2025, arXiv:2512.23070",
        "nmoe_flower.baselines.flex_moe:FLEX_MOE",
        league="personal",
        assumes="a client holds some of the experts, its gate stays at home; the server knows how "
        "well each expert does at each client",
        several=True,
        partial=True,
        bounded=True,
        answers=("flex-moe", "uniform", "random", "oracle"),
    ),
    "fedjets": BaselineEntry(
        "FedJETs",
        "Dun et al. 2023, arXiv:2306.08586",
        "nmoe_flower.baselines.fedjets:FEDJETS",
        league="global",
        assumes="a client trains some of the experts; the server knows what the gate prefers at "
        "each client and, with anchors, how many images of each class each client has",
        several=True,
        partial=True,
        answers=("fedjets", "uniform", "random", "oracle"),
        reads_labels=True,
        options=("anchors",),
    ),
    "fedmoe-da": BaselineEntry(
        "FedMoE-DA",
        "Zhan et al. 2024, arXiv:2411.02115",
        "nmoe_flower.baselines.fedmoe_da:FEDMOE_DA",
        league="personal",
        assumes="a client has experts of its own, which others' are mixed with; the server relays "
        "them",
        several=True,
        answers=("fedmoe-da", "uniform", "random", "oracle"),
        options=("neighbours",),
    ),
    "pfedmoe": BaselineEntry(
        "pFedMoE",
        "Yi et al. 2024, arXiv:2402.01350",
        "nmoe_flower.baselines.pfedmoe:PFEDMOE",
        league="personal",
        assumes="a second extractor, a head and a gate at home",
        shares_trunk=True,
    ),
    "pfedmoap": BaselineEntry(
        "pFedMoAP",
        "Luo et al. 2025, arXiv:2410.10114",
        "nmoe_flower.baselines.pfedmoap:PFEDMOAP",
        league="personal",
        assumes="a given extractor; a gate and the nearest heads of others at home; the server "
        "keeps everybody's last head, baseline.experts - 1 of which a client is sent",
        needs_given=True,
        options=("experts",),
    ),
}

# What tables call the answers of baselines that no system is named after.
BASELINE_ANSWERS = {
    "majority": "most frequent class",
    "own": "own training alone",
    "fine-tuned": "head fine-tuned at home",
    "ditto-global": "Ditto, global model",
    "pfl-fb": "PFL-FB",
    "pfl-mf": "PFL-MF",
    "pfl-mfe": "PFL-MFE",
    "uniform": "all experts alike",
}


@dataclass(frozen=True)
class TrackerEntry:
    """One tool that runs can be tracked with.

    Attributes:
        label: The name the tool gives itself.
        tracker: ``module:Class``, a `nmoe_flower.tracking.Tracker` without arguments.
        package: What is imported of it.
        extra: The extra of this package that installs it.
    """

    label: str
    tracker: str
    package: str
    extra: str


TRACKERS = {
    "tensorboard": TrackerEntry(
        "TensorBoard", "nmoe_flower.tracking.tensorboard:TensorBoard", "tensorboard", "tracking"
    ),
    "mlflow": TrackerEntry("MLflow", "nmoe_flower.tracking.mlflow:MLflow", "mlflow", "mlflow"),
    "wandb": TrackerEntry(
        "Weights & Biases", "nmoe_flower.tracking.wandb:WeightsAndBiases", "wandb", "wandb"
    ),
}


def found(reference: str) -> Any:
    """What ``module:name`` in a row stands for.

    >>> found("nmoe_flower.catalogue:GATES")["local"].plain
    True
    """
    return pkgutil.resolve_name(reference)
