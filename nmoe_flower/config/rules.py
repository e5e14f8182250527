"""What no section can say alone: settings that exclude or need each other, and settings to mind."""

from typing import TYPE_CHECKING

from nmoe_flower.catalogue import (
    ADAPTER_CONTROLS,
    BACKBONES,
    BASELINES,
    CHUNKS,
    CONTROLS,
    GATES,
    GIVEN,
    LANGUAGE_MODELS,
    TEXT_GATES,
)
from nmoe_flower.cohorts import cohort_size
from nmoe_flower.config.privacy import weights_refusal
from nmoe_flower.config.unread import unread
from nmoe_flower.own_code import FORM, is_own
from nmoe_flower.plurals import how_many, one_or_many

if TYPE_CHECKING:
    from nmoe_flower.config.whole import Config

__all__ = ["advice", "check_rules"]


def check_rules(config: "Config") -> None:
    """Refuse sections that do not fit together.

    Raises:
        ValueError: The text names the keys, their values and what is allowed.
    """
    _extractor_is_given_or_trained(config)
    _adapters_can_begin(config)
    _nobody_asks_for_more_than_there_are(config)
    _gates_have_what_they_need(config)
    _experts_find_their_head(config)
    _matrices_can_contrast(config)
    _budget_covers_what_travels(config)
    _language_stands_alone(config)
    _text_has_a_reader(config)
    _expert_has_a_place(config)
    _histograms_can_be_private(config)
    _networks_can_read_the_data(config)
    _weights_can_be_private(config)
    _published_systems_train_all(config)


def _nobody_asks_for_more_than_there_are(config: "Config") -> None:
    """Experts asked, clients waited for and lists of either stay within their numbers."""
    clients = config.data.num_clients
    if config.gate.top_k > clients:
        raise ValueError(
            f"gate.top-k is {config.gate.top_k} but there "
            f"{one_or_many(clients, 'is', 'are')} only {how_many(clients, 'expert')} "
            "(data.num-clients)"
        )
    if config.gate.distribution and len(config.gate.distribution) != clients:
        raise ValueError(
            f"gate.distribution has {how_many(len(config.gate.distribution), 'entry', 'entries')} "
            f"for {clients} "
            f"experts, got {', '.join(map(str, config.gate.distribution))}"
        )
    if config.has_shortlists and config.gate.top_k > config.gate.shortlist:
        raise ValueError(
            f"gate.top-k is {config.gate.top_k} and gate.shortlist only {config.gate.shortlist}: "
            "a gate learns to ask as many as a client knows; allowed: 0 (all), or "
            f"{config.gate.top_k} and more"
        )
    experts = config.alignment.experts or clients
    if config.run.system == "aligned" and config.alignment.top_k > experts:
        raise ValueError(
            f"alignment.top-k is {config.alignment.top_k} but there "
            f"{one_or_many(experts, 'is', 'are')} only {how_many(experts, 'expert')} "
            "(alignment.experts, or data.num-clients)"
        )
    if config.run.min_replies > clients:
        raise ValueError(
            f"run.min-replies is {config.run.min_replies} but there "
            f"{one_or_many(clients, 'is', 'are')} {how_many(clients, 'client')}"
        )
    for key, fraction, least in _shares_asked(config):
        asked = min(clients, max(cohort_size(clients, fraction), least))
        if config.run.min_replies > asked:
            raise ValueError(
                f"run.min-replies is {config.run.min_replies} but {key} = {fraction:g} asks only "
                f"{asked} of {how_many(clients, 'client')} in a round; allowed: run.min-replies = "
                f"1 to {asked}, or a larger {key}"
            )


def _shares_asked(config: "Config") -> list[tuple[str, float, int]]:
    """Keys of stages of this run that ask a share of the clients: its value, and how many at least.

    The least is that of the stage's strategy, ``min_train_nodes``.
    """
    system, gate = config.run.system, config.gate
    found = []
    if config.has_stage_1 and config.extractor.is_trained:
        found.append(("extractor.fraction-train", config.extractor.fraction_train, 2))
    named = gate.methods if system == "networked" else ()
    if config.expert.sharing == "none":
        named = ()
    if system == "language":
        named = tuple(name.removesuffix(CHUNKS) for name in config.text_gates)
    if "federated" in named:
        found.append(("gate.fraction-train", gate.fraction_train, 1))
    if "rolling" in named and gate.rolling == "federated":
        found.append(("gate.fraction-train", gate.fraction_train, 2))
    if system == "aligned":
        found.append(("alignment.fraction-train", config.alignment.fraction_train, 2))
    if system in BASELINES:
        found.append(("baseline.fraction-train", config.baseline.fraction_train, 2))
    return found


def _gates_have_what_they_need(config: "Config") -> None:
    """A form, a start and a method of a gate go with the system and with what experts share."""
    if config.gate.form == "metric" and config.run.system != "networked":
        raise ValueError(
            "gate.form = metric is for run.system = networked, got run.system = "
            f"{config.run.system}: allowed: gate.form = auto"
        )
    if config.gate.start == "prototypes" and config.gate.hidden:
        raise ValueError(
            "gate.start = prototypes is for a linear gate, got gate.hidden = "
            f"{config.gate.hidden}: allowed: gate.hidden = 0, or gate.start = zero"
        )
    unshared = config.expert.sharing == "none"
    if config.gate.start == "prototypes" and (unshared or config.run.system != "networked"):
        why = "expert.sharing = none" if unshared else f"run.system = {config.run.system}"
        raise ValueError(
            f"gate.start = prototypes is where FedGate starts on latents, got {why}: allowed: "
            "gate.start = auto"
        )
    if unshared and set(config.gate.methods) != {"local"}:
        raise ValueError(
            "expert.sharing = none leaves every expert at home: the only gate then is local, "
            f"got gate.methods = {', '.join(config.gate.methods)}"
        )
    told = [name for name in config.gate.methods if name in GATES and GATES[name].owners]
    if told and config.data.scheme != "natural":
        raise ValueError(
            f"gate.methods = {told[0]} must be told whose each image is, and data.scheme = "
            f"{config.data.scheme} makes them nobody's: use natural, or leave it out"
        )


def _experts_find_their_head(config: "Config") -> None:
    """A head that experts begin as is there, and has their layers."""
    if (
        config.expert.init != "scratch"
        and config.extractor.head == "linear"
        and config.expert.hidden
    ):
        raise ValueError(
            f"expert.init = {config.expert.init} starts from the stage-1 head, but "
            "extractor.head is linear and expert.hidden is not empty: "
            "use expert.init = scratch, extractor.head = expert or an empty expert.hidden"
        )
    if config.run.system != "networked" and config.head.standardises:
        key = "method = sums" if config.head.method == "sums" else "standardise = true"
        raise ValueError(
            f"head.{key} is for run.system = networked, got run.system = {config.run.system}"
        )
    if config.head.method == "sums" and config.expert.init != "scratch" and config.expert.hidden:
        raise ValueError(
            f"expert.init = {config.expert.init} starts from the head, and head.method = sums "
            f"solves a linear one, got expert.hidden = {','.join(map(str, config.expert.hidden))}: "
            "use an empty expert.hidden, or expert.init = scratch"
        )
    if config.head.start == "ridge" and config.extractor.head != "linear" and config.expert.hidden:
        raise ValueError(
            "head.start = ridge is a linear head, and extractor.head = expert trains one with "
            f"expert.hidden = {','.join(map(str, config.expert.hidden))}: use extractor.head = "
            "linear, or an empty expert.hidden"
        )
    if config.extractor.shares_head and config.head.rounds:
        raise ValueError(
            f"head.rounds = {config.head.rounds} trains a head where stage 1 leaves none, and "
            f"extractor.method = fedce leaves one: use 0"
        )
    method = config.extractor.method
    solved = config.head.method == "sums"
    headless = method != "fedce" and not config.head.rounds and not solved
    if config.expert.init == "head" and headless:
        why = "trains nothing" if config.extractor.is_given else "trains without labels"
        raise ValueError(
            f"expert.init = head needs a head, and extractor.method = {method} {why}: set "
            "head.rounds, or use scratch"
        )


def _matrices_can_contrast(config: "Config") -> None:
    """FedSC has negatives, and matrices before its last round."""
    if config.extractor.method != "fedsc":
        return
    if config.contrast.unbiased and config.extractor.batch_size == 1:
        raise ValueError(
            "extractor.batch-size = 1 leaves extractor.method = fedsc without negatives: "
            "use at least 2"
        )
    if config.contrast.first > config.extractor.rounds:
        raise ValueError(
            f"contrast.first is {config.contrast.first} and there are "
            f"extractor.rounds = {config.extractor.rounds}: no matrix would ever be shared; "
            "if that is meant: contrast.share = own"
        )


def _budget_covers_what_travels(config: "Config") -> None:
    """Privacy is switched on where a mechanism covers what leaves a device."""
    size = config.data.train_per_client
    any_private = config.privacy.enabled or config.privacy.weights or config.privacy.tokens
    if any_private and size * config.privacy.delta >= 1:
        raise ValueError(
            f"privacy.delta must be below 1 / images = {1 / size:.3g} of a client "
            f"(data.train-per-client), got {config.privacy.delta:g}"
        )
    if not config.privacy.enabled:
        return
    of_text = config.run.system == "language"  # whose sums have rules of their own
    contrastive = config.extractor.method == "fedsc"
    if config.head.asks_sums and config.extractor.is_trained:
        raise ValueError(
            "privacy.enabled with sums pays for these alone, and extractor.method = "
            f"{config.extractor.method} trains an extractor for "
            f"{how_many(config.extractor.rounds, 'round')}: "
            "use a given one, one of another run (extractor.start), or extractor.rounds = 0"
        )
    asks = not of_text and ("lda" in config.gate.methods or config.head.standardises)
    if asks and not config.head.asks_sums:
        what = "head.standardise = true" if config.head.standardise else "gate.methods = lda"
        raise ValueError(
            f"privacy.enabled does not cover the sums that {what} asks for: use head.method = "
            "sums, or leave it out"
        )
    if not (contrastive or config.head.asks_sums or of_text):
        raise ValueError(
            "privacy.enabled covers the correlation matrices of extractor.method = fedsc, and sums "
            "over latents (head.method = sums), got "
            f"extractor.method = {config.extractor.method}"
        )
    if config.privacy.adjacency == "add-remove":
        raise ValueError(
            "privacy.adjacency = add-remove hides how many images there are, and a run divides "
            "matrices by their number, which travels in clear: use replace-one"
        )
    if config.contrast.source == "batches":
        raise ValueError(
            "privacy.enabled needs matrices in which every image counts once: set "
            "contrast.source = pass or auto, got batches"
        )


def _extractor_is_given_or_trained(config: "Config") -> None:
    """A given backbone, and only such a one, goes with the method that trains nothing."""
    if config.run.system == "language":  # which has rules of its own
        return
    extractor = config.extractor
    backbone = extractor.backbone
    given = backbone.partition(":")[0] in GIVEN
    if config.data.kind == "text":  # which is read by others
        return
    names = ", ".join(f"{name}:NAME" if row.names else name for name, row in GIVEN.items())
    if not extractor.stands_on_given:
        if given:
            or_adapters = (
                ", or adapters on it: extractor.adapter-rank above 0"
                if extractor.method == "fedce"
                else ""
            )
            raise ValueError(
                f"extractor.backbone = {backbone} comes trained, and extractor.method = "
                f"{extractor.method} trains: use extractor.method = pretrained{or_adapters}"
            )
        for key in ("weights", "resolution", "cut"):
            value = getattr(extractor, key)
            if value != type(extractor).model_fields[key].default:
                told = ", ".join(value) if isinstance(value, tuple) else value
                raise ValueError(
                    f"extractor.{key} = {told} is for extractor.method = pretrained, got "
                    f"{extractor.method}"
                )
        return
    if not given and not is_own(backbone):
        raise ValueError(
            f"extractor.method = pretrained trains nothing, and extractor.backbone = {backbone} "
            f"comes untrained; allowed: {names}, or {FORM}"
        )
    if config.run.system == "aligned" and config.alignment.extractor != "filters":
        raise ValueError(
            f"run.system = aligned takes no given extractor (extractor.backbone = {backbone}) with "
            f"alignment.extractor = {config.alignment.extractor}; allowed: run.system = networked, "
            "or alignment.extractor = filters"
        )
    if extractor.start and extractor.is_given:
        raise ValueError(
            f"extractor.start = {extractor.start} takes what another run has trained, and "
            "extractor.method = pretrained has extractor.weights for that: leave one of them out"
        )
    if given and config.data.kind == "features":
        raise ValueError(
            f"extractor.backbone = {backbone} reads images, and data.kind is features: use mlp or "
            "linear, and a method that trains"
        )


def _adapters_can_begin(config: "Config") -> None:
    """What lies below adapters is computed once, and they may begin at what sums give."""
    extractor, head = config.extractor, config.head
    if head.standardise and not head.rounds and not extractor.is_adapted:
        raise ValueError(
            "head.standardise = true needs head.rounds above 0: it is for their head, got 0"
        )
    if not extractor.is_adapted:
        return
    for key in ("crop_padding", "cutout"):
        if value := getattr(config.data, key):
            raise ValueError(
                f"data.{key.replace('_', '-')} = {value} changes images in every step, and what "
                "lies below adapters (extractor.adapter-rank) is computed once, of an image and of "
                "its mirror image: use 0; data.flip is allowed"
            )
    if (head.standardise or head.start != "fresh") and not extractor.shares_head:
        key = "standardise = true" if head.standardise else f"start = {head.start}"
        raise ValueError(
            f"head.{key} begins adapters with one head for all, and extractor.reading = "
            f"{extractor.reading} leaves heads at home: use shared-head, or leave it out"
        )
    if "ridge" in config.run.controls and config.sums_come_first:
        raise ValueError(
            "run.controls = ridge is a head on the latents that experts see, and head.start = "
            f"{head.start} has sums of those before adapters were trained: leave it out"
        )


def _histograms_can_be_private(config: "Config") -> None:
    if not config.privacy.tokens:
        return
    if config.run.system != "language" or not config.gate.asks_frequencies:
        raise ValueError(
            "privacy.tokens covers the histograms of tokens of run.system = language with a gate "
            f"unigram, got run.system = {config.run.system} and gate.methods = "
            f"{', '.join(config.gate.methods)}"
        )
    if config.privacy.adjacency == "add-remove":
        raise ValueError(
            "privacy.adjacency = add-remove hides how many windows there are, and clients tell "
            "their number in clear: use replace-one with privacy.tokens"
        )


def _language_stands_alone(config: "Config") -> None:
    """Text, its system and a backbone that reads it go together."""
    system, kind, backbone = config.run.system, config.data.kind, config.extractor.backbone
    reads = backbone in LANGUAGE_MODELS or backbone.startswith("transformers:")
    if system != "language":
        if backbone in LANGUAGE_MODELS and kind != "text":
            raise ValueError(
                f"extractor.backbone = {backbone} reads text: use it with run.system = language, "
                f"or with data.kind = text to classify it, got data.kind = {kind}"
            )
        if of_text := [name for name in config.gate.methods if name in TEXT_GATES]:
            raise ValueError(
                f"gate.methods = {', '.join(of_text)} needs text: use it with run.system = language"
            )
        return
    if kind != "text":
        raise ValueError(
            "run.system = language and data.kind = text need each other, got "
            f"run.system = {system} and data.kind = {kind}"
        )
    if (scheme := config.data.scheme) not in ("natural", "iid"):
        raise ValueError(
            f"data.scheme = {scheme} looks at classes, and the text of run.system = language has "
            "none: use natural (a domain or a writer each) or iid (documents dealt to all alike)"
        )
    if not reads:
        raise ValueError(
            f"run.system = language needs a backbone that reads text, got extractor.backbone = "
            f"{backbone}; allowed: {', '.join(LANGUAGE_MODELS)} or transformers:NAME"
        )
    if not config.extractor.is_given:
        raise ValueError(
            "run.system = language trains adapters of a backbone that is given: use "
            f"extractor.method = pretrained, got {config.extractor.method}"
        )
    if config.expert.sharing == "latents":
        raise ValueError(
            "expert.sharing = latents is not for run.system = language: use weights, so that every "
            "client scores its text by every expert, or none"
        )
    known = {**GATES, **TEXT_GATES}
    if not any(name in known and known[name].of_text for name in config.gate.methods):
        allowed = [name for name, entry in known.items() if entry.of_text]
        raise ValueError(
            f"gate.methods = {', '.join(config.gate.methods)}: none of them routes text; allowed: "
            f"{', '.join(allowed)}"
        )
    if config.text.candidates and not config.gate.asks_frequencies:
        raise ValueError(
            f"text.candidates = {config.text.candidates} takes the best of a gate unigram, got "
            f"gate.methods = {', '.join(config.gate.methods)}: add unigram, or use 0"
        )
    _state_gates_fit(config)
    settings, clients = config.adapter, config.data.num_clients
    if settings.ranks and len(settings.ranks) != clients:
        raise ValueError(
            f"adapter.ranks has {how_many(len(settings.ranks), 'entry', 'entries')} for "
            f"{how_many(clients, 'client')}, got "
            f"{', '.join(map(str, settings.ranks))}"
        )
    averaged = any(ADAPTER_CONTROLS[name].averaged for name in settings.controls)
    tried = max(len(settings.learning_rates), averaged * len(settings.rates_of_averages))
    if tried > 1 and not config.data.validation_per_client:
        raise ValueError(
            f"adapter.learning-rates = {', '.join(map(str, settings.learning_rates))} and "
            f"averaged-learning-rates = {', '.join(map(str, settings.rates_of_averages))}: of "
            "several, one is chosen on validation text: set data.validation-per-client, or give "
            "one each"
        )


def _text_has_a_reader(config: "Config") -> None:
    """Labelled text is classified on what a given backbone says of its tokens."""
    system, extractor = config.run.system, config.extractor
    if config.data.kind != "text" or system == "language":
        return
    if system == "aligned":
        raise ValueError(
            "run.system = aligned has no backbone that reads text, and data.kind is text: use "
            "networked to classify it, or language"
        )
    if system == "pfl-moe":
        raise ValueError(
            "run.system = pfl-moe has a gate that reads pixels, and data.kind is text: use fedavg, "
            "whose fine-tuned head is PFL-MoE's, or another system"
        )
    backbone = extractor.backbone
    if not (backbone in LANGUAGE_MODELS or backbone.startswith("transformers:")):
        raise ValueError(
            f"data.kind = text needs a backbone that reads text, got extractor.backbone = "
            f"{backbone}; allowed: {', '.join(LANGUAGE_MODELS)} or transformers:NAME"
        )
    if not extractor.is_given:
        raise ValueError(
            "data.kind = text is classified on a backbone that is given: use extractor.method = "
            f"pretrained, got {extractor.method}"
        )
    for key in ("mirror", "resolution"):
        if value := getattr(extractor, key):
            raise ValueError(
                f"extractor.{key} = {str(value).lower()} is for images, and data.kind is text: "
                "leave it out"
            )
    if odd := [part for part in extractor.cut if not part.endswith(":1")]:
        raise ValueError(
            f"extractor.cut = {odd[0]}: tokens are averaged, and have no grid; allowed: LAYER:1"
        )
    if extractor.start:
        raise ValueError(
            f"extractor.start = {extractor.start} takes what another run has trained, and "
            "extractor.method = pretrained has extractor.weights for that: leave it out"
        )


def _expert_has_a_place(config: "Config") -> None:
    """Networks beside feed-forward parts are for text, and their mean has no product."""
    if config.expert.kind != "ffn":
        return
    if config.run.system != "language":
        raise ValueError(
            "expert.kind = ffn stands beside the blocks of a language model, got run.system = "
            f"{config.run.system}: leave it out, or use run.system = language"
        )
    if config.adapter.targets:
        raise ValueError(
            f"adapter.targets = {', '.join(config.adapter.targets)} names linear layers to adapt, "
            "and expert.kind = ffn stands beside the feed-forward part: leave it out"
        )
    if "fedavg-exact" in config.adapter.controls:
        raise ValueError(
            "adapter.controls = fedavg-exact averages the products of two factors, and expert.kind "
            "= ffn has a curve between them: leave it out"
        )


def _state_gates_fit(config: "Config") -> None:
    """Gates of hidden states are linear; FedGate needs text that no expert was trained on."""
    known = {**GATES, **TEXT_GATES}
    named = [name for name in config.gate.methods if name in known and known[name].states]
    if config.privacy.enabled and not (named and config.expert.sharing == "weights"):
        raise ValueError(
            "privacy.enabled covers the sums of hidden states that gates prototype and lda are "
            "solved from, got gate.methods = "
            f"{', '.join(config.gate.methods)} and expert.sharing = {config.expert.sharing}"
        )
    trained = [name for name in named if name.removesuffix(CHUNKS) == "federated"]
    if not trained:
        return
    if not config.data.validation_per_client:
        if config.gate.is_usual:
            return
        raise ValueError(
            f"gate.methods = {trained[0]} is trained on validation text: set "
            "data.validation-per-client, or leave it out"
        )
    for key in ("hidden", "noisy"):
        if value := getattr(config.gate, key):
            raise ValueError(
                f"gate.{key} = {str(value).lower()} is not for run.system = language, whose gate "
                f"{trained[0]} is linear: leave it out"
            )


def _networks_can_read_the_data(config: "Config") -> None:
    if config.data.kind in ("images", "text"):
        return
    backbone = BACKBONES.get(config.extractor.backbone)
    if backbone is not None and "features" not in backbone.reads:
        others = [name for name, entry in BACKBONES.items() if "features" in entry.reads]
        raise ValueError(
            f"extractor.backbone = {config.extractor.backbone} reads images, and data.kind is "
            f"features: use {' or '.join(others)}"
        )
    if config.contrast.view_size:
        raise ValueError(
            f"contrast.view-size = {config.contrast.view_size} is for images, and data.kind is "
            "features: use 0"
        )
    if config.run.system == "aligned" and config.alignment.extractor == "filters":
        raise ValueError(
            "alignment.extractor = filters reads images, and data.kind is features: use trained"
        )


def _published_systems_train_all(config: "Config") -> None:
    system, extractor = config.run.system, config.extractor
    if system not in BASELINES:
        return
    entry, settings = BASELINES[system], config.baseline
    if extractor.is_given and entry.shares_trunk:
        others = [name for name, other in BASELINES.items() if not other.shares_trunk]
        raise ValueError(
            f"run.system = {system} shares nothing but the trunk it trains, and extractor.method = "
            f"{extractor.method} gives one: use fedce, or one of {', '.join(others)}"
        )
    if entry.needs_given and not extractor.is_given:
        raise ValueError(
            f"run.system = {system} learns heads on frozen features, and extractor.method = "
            f"{extractor.method} trains them: use pretrained"
        )
    if extractor.is_given and entry.several and settings.size == "net":
        raise ValueError(
            f"baseline.size = net trains whole networks, and extractor.method = {extractor.method} "
            "gives their trunk: use head"
        )
    if config.has_stage_1 and extractor.stands_on_given:
        raise ValueError(
            f"baseline.trunk = stage-1 trains a whole network before, and extractor.method = "
            f"{extractor.method} stands on {extractor.backbone}, which is given: use fresh"
        )
    if extractor.start and not config.has_stage_1:
        raise ValueError(
            f"extractor.start = {extractor.start} is for baseline.trunk = stage-1, and "
            f"run.system = {system} draws its trunk: set that, or leave it empty"
        )
    if system == "fedrep" and settings.local_steps < 2:
        raise ValueError(
            f"baseline.local-steps = {settings.local_steps} leaves no step for the trunk: "
            "run.system = fedrep trains the head in the first half of a round's steps and the "
            "trunk in the second; allowed: 2 or more"
        )
    if entry.partial and settings.held > settings.experts:
        raise ValueError(
            f"baseline.held = {settings.held} is above baseline.experts = {settings.experts}; "
            f"allowed: 1 to {settings.experts}"
        )
    if settings.held == 1 < settings.experts and (
        system == "fedmoe" or (system == "fedjets" and not settings.anchors)
    ):
        raise ValueError(
            f"baseline.held = 1 leaves run.system = {system} nothing to learn its choice from: the "
            f"softmax over one expert is 1; allowed: 2 to {settings.experts}"
        )
    if max(settings.lo, settings.hi) >= 0 and not entry.bounded:
        bounded = [name for name, other in BASELINES.items() if other.bounded]
        raise ValueError(
            f"baseline.lo = {settings.lo} and hi = {settings.hi} are for {', '.join(bounded)}, not "
            f"for run.system = {system}: leave them at -1"
        )
    if settings.hi == 0:
        raise ValueError(
            "baseline.hi = 0 lets nobody train any expert; allowed: 1 or more, or -1 for an even "
            "share"
        )
    if 0 <= settings.hi < settings.lo:
        raise ValueError(f"baseline.lo is {settings.lo}, above baseline.hi = {settings.hi}")
    for key in ("enabled", "weights"):
        if getattr(config.privacy, key):
            raise ValueError(
                f"privacy.{key} = true covers nothing that run.system = {system} sends: use false"
            )


def _weights_can_be_private(config: "Config") -> None:
    if config.privacy.weights and (reason := weights_refusal(config.extractor, config.contrast)):
        raise ValueError(f"privacy.weights {reason}")


def advice(config: "Config") -> list[str]:
    """What is allowed but rarely meant, in words."""
    notes = (
        config.alignment.advice(config.data.num_clients) if config.run.system == "aligned" else []
    )
    if config.extractor.norm == "batch" and config.data.scheme != "iid":
        notes.append(
            f"extractor.norm = batch under data.scheme = {config.data.scheme}: averaging "
            "BatchNorm's statistics over skewed clients costs most of the accuracy; "
            "group-ws does not mix images"
        )
    private = config.privacy.enabled or config.privacy.weights or config.privacy.tokens
    if private and not config.privacy.secure:
        notes.append(
            "privacy.secure = false: noise comes from run.seed, and whoever knows it can take "
            "it out again; fine for a simulation, not for a deployment"
        )
    if (config.privacy.enabled or config.privacy.weights) and config.data.kind == "features":
        notes.append(
            "data.kind = features: no privacy budget covers data.feature-means and "
            "data.feature-deviations; give them from what is public"
        )
    if config.data.partition_column and config.data.scheme != "natural":
        notes.append(
            f"data.partition-column = {config.data.partition_column} is no feature, and "
            f"data.scheme = {config.data.scheme} does not look at it; natural does"
        )
    if config.privacy.tokens and config.expert.sharing == "weights":
        notes.append(
            "privacy.tokens covers the histogram of tokens, and not the adapter that leaves beside "
            "it and was trained on the same text"
        )
    notes += unread(config)
    if config.run.system != "networked":  # whose gates and controls are others
        return notes
    pooling = [GATES[name].pools for name in config.gate.methods if name in GATES]
    if any(pooling) or any(CONTROLS[name].pools for name in config.run.controls):
        notes.append(
            "the global gate and the centralized control pool the clients' data: upper bounds "
            "for simulations, not for deployment"
        )
    return notes
