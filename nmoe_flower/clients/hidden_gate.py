"""FedGate of text at the client: experts' log-probabilities of held-out text, and steps on them."""

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn

from nmoe_flower import records
from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.clients.device import device_of, language_of
from nmoe_flower.clients.gate import configured_objective, gate_steps
from nmoe_flower.records import ARRAYS, EXPERT, LOSS, NUM_EXAMPLES, TextKey
from nmoe_flower.sums import Standardisation

__all__ = ["keep_held_out", "train"]

_HELD_OUT = "held-out-text"
_STATES, _NATS, _SCORED = "states", "nats", "scored"
_SURE = 1e-6  # nats; a token that costs less counts as this, so that its opposite stays finite


def keep_held_out(message: Message, context: Context) -> Message:
    """Keep what FedGate learns from: the standardised mean state of each prefix of validation text.

    And, beside it, what every expert loses on each token that follows.
    """
    device = device_of(context)
    language = language_of(device)
    split = language.tests[VALIDATION]
    told = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    standard = Standardisation(*(told[name].astype(np.float64) for name in TextKey.standard()))
    states = standard.apply(language.prefix_means(split).astype(np.float64))
    nats = []
    experts = records.to_numpy(records.of_kind(message.content, ArrayRecord)[EXPERT])
    for adapter in records.by_owner(experts).values():
        language.load(adapter)
        nats.append(language.score(split))
    kept = {
        _STATES: (states / states.shape[1] ** 0.5).astype(np.float32),
        _NATS: np.stack(nats, axis=2),
        _SCORED: split.scored(device.config.text.prefix),
    }
    device.store.save(_HELD_OUT, kept)
    return records.reply(message, metrics={NUM_EXAMPLES: len(split)})


def train(message: Message, context: Context) -> Message:
    """A few steps of the linear gate on this client's validation text, with every expert frozen.

    Each scored token counts as one sample of two classes, which the experts' probabilities of it
    decide: so the likelihood of the mixture is that of the text.
    """
    device = device_of(context)
    states, scored, nats = (device.kept(_HELD_OUT, part) for part in (_STATES, _SCORED, _NATS))
    gate = nn.Linear(states.shape[1], nats.shape[2], device=device.torch_device)
    received = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    records.load_into(gate.state_dict(), received)
    objective = configured_objective(device)

    def loss(batch: tuple[Tensor, ...]) -> Tensor:
        inputs, where, lost = batch
        tokens = gate(inputs)[:, None].expand(*where.shape, -1)[where]
        truth = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        return objective(tokens, two_classes(lost[where]), truth)

    result = gate_steps(device, gate, loss, (states, scored, nats), message)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(states), LOSS: result.loss},
        arrays={ARRAYS: records.pack(gate.state_dict())},
    )


def two_classes(nats: Tensor) -> Tensor:
    """Logits of a token and of all others, whose softmax is the token's probability, [..., 2].

    Args:
        nats: Negative log-likelihoods, [...].
    """
    lost = nats.clamp(min=_SURE)
    return torch.stack([-lost, (-torch.expm1(-lost)).log()], dim=-1)
