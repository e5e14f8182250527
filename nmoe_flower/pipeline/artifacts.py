"""What stages leave for each other: named arrays, all of them listed here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from nmoe_flower import records
from nmoe_flower.codec import array_of_json, json_of_array

__all__ = ["Arrays", "Artifacts"]

Arrays = dict[str, np.ndarray]
# The names in checkpoints: those of older versions, so that their runs go on.
_GROUPS = {
    "classifier": "classifier/",
    "initial_gate": "gate/initial/",
    "initial_head": "head/initial/",
    "ridge": "ridge/",
    "discriminants": "discriminants/",
    "shortlists": "shortlists/",
    "centralized": "centralized/",
    "pooled_head": "pooled-head/",
    "mixture": "mixture/",
    "alignment": "aligned/",
    "adapters": "adapters/",
    "text_standard": "text-standard/",
}
_GATE, _PROTOTYPES, _NORMAL_MEANS = "gate/", "prototypes", "normal-means"
_CARRIED = "carried/clients"
_SPECTRUM, _ACCOUNTANT = "findings/spectrum", "findings/accountant"
_EXPERT_PARAMETERS = "parameters/expert"
_SHARED, _RATES, _FREQUENCIES = "shared/", "findings/rates", "frequencies/text"
_TRIED, _TRIED_BITS = "at-rates/", "findings/at-rates"


@dataclass
class Artifacts:
    """What finished stages left; empty or None until one has.

    D is the length of a latent, E the number of experts, C of classes, d of FedSC's features.

    Attributes:
        classifier: ``extractor.*`` of stage 1, and ``head.*`` of stage 1 or of the stage head. Read
            by every later stage, and by evaluation for the control fedavg.
        initial_gate: A fresh gate, from stage 1: where every trained gate starts.
        initial_head: A fresh head, from stage 1: where the stage head starts.
        ridge: The head solved from sums, linear, from the stage head; for evaluation.
        discriminants: ``weight`` [E, D] and ``bias`` [E] of the gate ``lda``, solved from the same
            sums; for stage 3.
        gates: The weights of each trained gate, by name, from stage 3; for evaluation.
        prototypes: Each client's mean latent, [E, D], from stage 2; for evaluation.
        normal_means: The means of each client's normalised latents, [E, D], from stage 2; for the
            shortlists and the start of stage 3.
        carried: Clients that bring an expert and a mean along from another run, [k]; for stage 2,
            which has their rows of ``normal_means`` from the start.
        shortlists: ``experts`` [E, S] and ``log-weights`` [E, S], whom each client learns the gate
            from, from stage 2; for stage 3 and evaluation. Empty: from all.
        centralized: ``probabilities`` [N, C] and ``expert-ids`` [N, K] of all test samples, then
            of all validation samples by client, from the central mixture among the controls; for
            evaluation.
        pooled_head: ``probabilities`` as in ``centralized``, from the pooled head among the
            controls; for evaluation.
        spectrum: Eigenvalues of FedSC's mean matrix, [d], from stage 1; for the results.
        accountant: What privacy stage 1 has spent, an `Accountant`'s state; for the results.
        expert_parameters: Parameters of one expert of the second system, told by a client before
            its first round; for the assignment.
        mixture: Extractor, gate and experts of the second system, from alignment; for evaluation.
        alignment: What the server of the second system has learned, the state of its strategy,
            from alignment; for evaluation.
        adapters: The experts of a language model, each under ``<client>/``; for evaluation.
        text_standard: What standardises mean hidden states of text, for the stage gates.
        frequencies: Log-probability of each token in each client's text, [E, V]; for evaluation.
        shared_adapters: Adapters of all clients, by the name of the control; for evaluation.
        chosen_rates: Learning rates that validation chose, by control; for the results.
        tried_adapters: Averaged adapters at rates among which validation has not chosen yet, by
            control and rate; for that choice.
        tried_bits: Bits per byte of everybody's validation text by each of these; likewise.
    """

    classifier: Arrays = field(default_factory=dict)
    initial_gate: Arrays = field(default_factory=dict)
    initial_head: Arrays = field(default_factory=dict)
    ridge: Arrays = field(default_factory=dict)
    discriminants: Arrays = field(default_factory=dict)
    gates: dict[str, Arrays] = field(default_factory=dict)
    prototypes: np.ndarray | None = None
    normal_means: np.ndarray | None = None
    carried: np.ndarray | None = None
    shortlists: Arrays = field(default_factory=dict)
    centralized: Arrays = field(default_factory=dict)
    pooled_head: Arrays = field(default_factory=dict)
    spectrum: np.ndarray | None = None
    accountant: dict[str, Any] | None = None
    expert_parameters: int = 0
    mixture: Arrays = field(default_factory=dict)
    alignment: Arrays = field(default_factory=dict)
    adapters: Arrays = field(default_factory=dict)
    text_standard: Arrays = field(default_factory=dict)
    frequencies: np.ndarray | None = None
    shared_adapters: dict[str, Arrays] = field(default_factory=dict)
    chosen_rates: dict[str, float] = field(default_factory=dict)
    tried_adapters: dict[str, Arrays] = field(default_factory=dict)
    tried_bits: dict[str, float] = field(default_factory=dict)

    def named(self) -> Arrays:
        """All of it as a checkpoint names it; `read` takes it back."""
        named = {
            prefix + name: array
            for attribute, prefix in _GROUPS.items()
            for name, array in getattr(self, attribute).items()
        }
        for gate, arrays in self.gates.items():
            named |= {f"{_GATE}{gate}/{name}": array for name, array in arrays.items()}
        for control, arrays in self.shared_adapters.items():
            named |= {f"{_SHARED}{control}/{name}": array for name, array in arrays.items()}
        for tried, arrays in self.tried_adapters.items():
            named |= {f"{_TRIED}{tried}/{name}": array for name, array in arrays.items()}
        if self.tried_bits:
            named[_TRIED_BITS] = array_of_json(self.tried_bits)
        if self.chosen_rates:
            named[_RATES] = array_of_json(self.chosen_rates)
        if self.frequencies is not None:
            named[_FREQUENCIES] = self.frequencies
        if self.prototypes is not None:
            named[_PROTOTYPES] = self.prototypes
        if self.normal_means is not None:
            named[_NORMAL_MEANS] = self.normal_means
        if self.carried is not None:
            named[_CARRIED] = self.carried
        if self.spectrum is not None:
            named[_SPECTRUM] = self.spectrum
        if self.accountant is not None:
            named[_ACCOUNTANT] = array_of_json(self.accountant)
        if self.expert_parameters:
            named[_EXPERT_PARAMETERS] = np.array(self.expert_parameters)
        return named

    @classmethod
    def read(cls, named: Mapping[str, np.ndarray]) -> Self:
        """What a checkpoint holds."""
        found = cls(
            prototypes=named.get(_PROTOTYPES),
            normal_means=named.get(_NORMAL_MEANS),
            carried=named.get(_CARRIED),
            spectrum=named.get(_SPECTRUM),
            frequencies=named.get(_FREQUENCIES),
            expert_parameters=int(named.get(_EXPERT_PARAMETERS, 0)),
        )
        for attribute, prefix in _GROUPS.items():
            setattr(found, attribute, records.part_of(named, prefix))
        if _ACCOUNTANT in named:
            found.accountant = json_of_array(named[_ACCOUNTANT])
        found.gates = records.by_owner(records.part_of(named, _GATE))
        found.gates.pop("initial", None)
        found.shared_adapters = records.by_owner(records.part_of(named, _SHARED))
        found.tried_adapters = records.by_owner(records.part_of(named, _TRIED))
        if _TRIED_BITS in named:
            found.tried_bits = json_of_array(named[_TRIED_BITS])
        if _RATES in named:
            found.chosen_rates = json_of_array(named[_RATES])
        return found

    def part(self, prefix: str) -> Arrays:
        """What of the classifier starts with ``extractor.`` or ``head.``, without that."""
        return records.part_of(self.classifier, prefix)

    def weights(self) -> dict[str, Arrays]:
        """The networks a run is made for, by the name of their file in ``weights/``."""
        extractor, head = self.part("extractor."), self.part("head.")
        found = {"mixture": self.mixture} if self.mixture else {}
        found |= self._of_language()
        if extractor or not found:
            found["extractor"] = extractor
        if head:
            found["head"] = head
        return found | {f"gate-{name}": self.gates[name] for name in sorted(self.gates)}

    def _of_language(self) -> dict[str, Arrays]:
        """Every adapter in a file of its own."""
        own = records.by_owner(self.adapters)
        found = {f"adapter-{client}": arrays for client, arrays in own.items()}
        if self.frequencies is not None:
            found["gate-unigram"] = {records.TextKey.FREQUENCIES: self.frequencies}
        return found | {f"adapter-{name}": arrays for name, arrays in self.shared_adapters.items()}
