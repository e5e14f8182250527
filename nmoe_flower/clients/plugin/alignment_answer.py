"""For any torch module whose experts are named: answer a round of ExpertAlignment."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message
from torch import nn

from nmoe_flower import records
from nmoe_flower.errors import ReplyError
from nmoe_flower.records import LOSS, NUM_EXAMPLES, AlignmentKey, FeedbackKey

__all__ = ["Trained", "answer_assigned"]


@dataclass(frozen=True)
class Trained:
    """What a client says about its training.

    Attributes:
        loss: Mean loss over the steps.
        num_examples: Number of samples, which weighs this client in every average.
        losses: Mean loss of each expert on held-out samples, by its name.
        samples: How many samples trained each expert, by its name; ``num_examples`` each if left
            out.
        shares: Shares of the held-out samples that the gate sends to each expert of the whole
            mixture, [E]; empty if the gate cannot tell.
    """

    loss: float
    num_examples: int
    losses: Mapping[str, float]
    samples: Mapping[str, float] | None = None
    shares: Sequence[float] = ()


def answer_assigned(
    message: Message, module: nn.Module, train: Callable[[list[str]], Trained]
) -> Message:
    """Load what came into ``module``, train it, send back what came and the feedback.

    The state of experts that did not come is left as it is: ``train`` must use only the experts
    it is given the names of.

    Args:
        message: What ``ExpertAlignment`` sent: extractor, gate and the assigned experts.
        module: The mixture; its state dict has all names that may come.
        train: Called with the names of the assigned experts.

    Raises:
        ReplyError: An array has no place in ``module``, or another shape.
    """
    weights = records.weights_name(message.content)
    arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[weights])
    state = module.state_dict()
    if strange := sorted(arrays.keys() - state.keys()):
        raise ReplyError(f"array {strange[0]!r} has no place in the module")
    records.load_into({name: state[name] for name in arrays}, arrays)
    told = records.config_of(message)
    names, ids = list(told[AlignmentKey.EXPERTS]), list(told[FeedbackKey.EXPERTS])
    started = time.perf_counter()
    done = train(names)
    seconds = time.perf_counter() - started
    samples = done.samples or dict.fromkeys(names, done.num_examples)
    feedback: dict[str, float | int | list[float] | list[int]] = {
        NUM_EXAMPLES: done.num_examples,
        LOSS: done.loss,
        FeedbackKey.EXPERTS: ids,
        FeedbackKey.LOSSES: [float(done.losses[name]) for name in names],
        FeedbackKey.SAMPLES: [float(samples[name]) for name in names],
        FeedbackKey.SECONDS: max(seconds, 1e-9),
    }
    if done.shares:
        feedback[FeedbackKey.SHARES] = [float(share) for share in done.shares]
    trained = records.pack({name: module.state_dict()[name] for name in arrays})
    return records.reply(message, metrics=feedback, arrays={weights: trained})
