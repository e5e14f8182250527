"""What a client of a published system does with each message."""

import math

import torch
from flwr.app import ArrayRecord, Context, Message

from nmoe_flower import metrics, records
from nmoe_flower.baselines.member import KEPT_TRUNK, Member
from nmoe_flower.baselines.system import Baseline
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.clients.device import device_of
from nmoe_flower.errors import ReplyError, within
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, SERVER_ROUND, BaselineKey, Score

__all__ = ["keep_trunk", "tell_first_weights", "test", "train"]

_SCORES = {
    Score.ACCURACY: metrics.accuracy,
    Score.BALANCED_ACCURACY: metrics.balanced_accuracy,
    Score.MACRO_F1: metrics.macro_f1,
}


def keep_trunk(message: Message, context: Context) -> Message:
    """Keep the extractor of stage 1, at which every network begins."""
    device = device_of(context)
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    device.store.save(KEPT_TRUNK, arrays)
    return records.reply(message, metrics={NUM_EXAMPLES: len(device.train_labels)})


def tell_first_weights(message: Message, context: Context) -> Message:
    """The initial weights of what travels, the same on every client of a seed."""
    member = _member(message, context, server_round=0)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(member.labels)},
        arrays={ARRAYS: records.pack(member.travelling())},
    )


def train(message: Message, context: Context) -> Message:
    """The client's part of a round; what it was sent goes back, trained.

    Raises:
        ReplyError: What would leave or stay is not finite.
    """
    told = records.config_of(message)
    member = _member(message, context, server_round=int(told[SERVER_ROUND]))
    member.load(message)
    member.told = told
    member.resumable = [int(r) for r in told.get(records.KEPT_ROUNDS, ())]
    metrics_found = member.system.train(member)
    mine, sent = member.travelling(), records.of_kind(message.content, ArrayRecord)[ARRAYS]
    trained = records.pack({name: mine[name] for name in sent if name in mine})
    member.require_finite(records.to_numpy(trained), "would leave")
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: len(member.labels), **metrics_found},
        arrays={ARRAYS: trained},
    )


def test(message: Message, context: Context) -> Message:
    """All tests by all that answers: the system, and after training what stands beside it.

    What stands beside it and says what is not finite has NaN for its scores.

    Raises:
        ReplyError: What the system itself says is not finite.
    """
    told = records.config_of(message)
    member = _member(message, context, server_round=int(told[SERVER_ROUND]) + 1)
    member.load(message)
    final = bool(told.get(BaselineKey.FINAL))
    measured: dict[str, float | list[float]] = {NUM_EXAMPLES: len(member.labels)}
    answers = member.system.answers(member, final=final)
    itself = next(iter(answers))
    for test_name, portion in member.device.tests.items():
        for who in answers if final else [itself]:
            with torch.inference_mode():
                probs = answers[who](portion).numpy()
            finite = records.is_finite(probs)
            if who == itself and not finite:
                raise ReplyError(
                    f"what {who} answers to the test {test_name} is not finite: "
                    f"{member.system.too_high(who)}"
                )
            prefix = f"{who}/" if final else ""
            for score, measure in _SCORES.items():
                if final or score == Score.ACCURACY:
                    with within(f"what {who} answers to the test {test_name}"):
                        found_score = measure(probs, portion.labels) if finite else math.nan
                    measured[f"{prefix}{score}-{test_name}"] = found_score
    return records.reply(message, metrics=measured)


def _member(message: Message, context: Context, *, server_round: int) -> Member:
    device = device_of(context)
    system: Baseline = found(BASELINES[device.config.run.system].system)
    return Member(device, system, server_round)
