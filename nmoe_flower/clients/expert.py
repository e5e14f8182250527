"""Stage 2 at the client: a personal expert on latents, and the peers' answers to keep."""

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.clients.device import (
    Device,
    device_of,
    latents_of,
    received_classifier,
    said_to,
)
from nmoe_flower.errors import ReplyError
from nmoe_flower.losses import labelled_loss
from nmoe_flower.models import Classifier, Expert, normal_mean
from nmoe_flower.records import (
    ANSWERS,
    EXPERT,
    HOLDOUT,
    LATENTS,
    LOSS,
    MEANS,
    NUM_EXAMPLES,
    PARAMETERS,
    PROTOTYPE,
    SHORTLIST,
    ExpertKey,
    ShortlistKey,
)
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training import RowBatches, SharedLoss, batch_indices, fit_along_cosine

__all__ = ["answer", "keep_answers", "train"]

OUT_OF_FOLD = "out-of-fold"


def train(message: Message, context: Context) -> Message:
    """Train the expert on the latents of the received extractor, keep both at home.

    A client that brings an expert along trains none.

    What leaves depends on ``expert.sharing``: the expert's weights, the latents of the hold-out and
    test images (with shortlists of the hold-out alone), or nothing; and the mean latent, for the
    prototype gate, and that of the normalised latents, for shortlists.
    """
    device = device_of(context)
    network, received = received_classifier(device, message)
    latents = latents_of(device, network.extractor)
    carried = bool(records.config_of(message).get(ExpertKey.CARRIED))
    if carried:
        state, loss = dict(device.store.load(EXPERT)), 0.0
    else:
        expert, loss = _train_expert(device, network, latents, latents["kept"])
        state = {name: tensor.cpu().numpy() for name, tensor in expert.state_dict().items()}
        device.store.save(EXPERT, state, sync=device.serves)
    if device.config.gate.folds and not carried:
        device.store.save(OUT_OF_FOLD, {ExpertKey.LOGITS: _out_of_fold(device, network, latents)})
    device.keep_extractor(received)
    arrays: dict[str, ArrayRecord] = {}
    config = device.config
    if config.expert.sharing == "weights":
        arrays[EXPERT] = records.from_numpy(state)
    elif config.expert.sharing == "latents":
        arrays[LATENTS] = records.from_numpy({name: latents[name] for name in _leaving(device)})
    means: dict[str, np.ndarray] = {}
    if config.gate.asks_prototypes:
        means[ExpertKey.MEAN] = latents["train"].mean(axis=0)
    if config.asks_normal_means:
        means[ExpertKey.NORMAL_MEAN] = normal_mean(torch.from_numpy(latents["train"])).numpy()
    if means:
        arrays[PROTOTYPE] = records.from_numpy(means)
    return records.reply(
        message,
        metrics={
            NUM_EXAMPLES: len(device.train_labels),
            LOSS: loss,
            PARAMETERS: sum(array.size for array in state.values()),
        },
        arrays=arrays,
    )


def answer(message: Message, context: Context) -> Message:
    """Answer latents [N, D] of any client with this client's expert: logits [N, C]."""
    device = device_of(context)
    asked = records.to_numpy(records.of_kind(message.content, ArrayRecord)[LATENTS])
    latents = asked[ExpertKey.LATENTS]
    expert = device.expert(latents.shape[1])
    records.load_into(expert.state_dict(), device.store.load(EXPERT))
    logits: dict[str, np.ndarray] = {ExpertKey.LOGITS: said_to(device, expert, latents).numpy()}
    if ExpertKey.VALIDATION in asked:
        logits[ExpertKey.VALIDATION] = said_to(device, expert, asked[ExpertKey.VALIDATION]).numpy()
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: sum(map(len, asked.values()))},
        arrays={ANSWERS: records.from_numpy(logits)},
    )


def keep_answers(message: Message, context: Context) -> Message:
    """Keep what every expert says to this client's latents: logits [N, E, C] per split.

    The message carries the experts' weights, or (if experts stay at home) their finished answers.
    If it carries a shortlist, these are of the experts on it, in its order.
    """
    device = device_of(context)
    content = records.of_kind(message.content, ArrayRecord)
    own = device.partition
    if SHORTLIST in content:
        device.store.save(SHORTLIST, records.to_numpy(content[SHORTLIST]))
        own = 0  # a client is first on its own list
    else:
        device.store.drop(SHORTLIST)
    if MEANS in content:
        device.store.save(MEANS, records.to_numpy(content[MEANS]))
    if ANSWERS in content:
        kept = records.to_numpy(content[ANSWERS])
    else:
        latents = device.store.load(LATENTS)
        told = records.by_owner(records.to_numpy(content[EXPERT]))
        states = {int(owner): state for owner, state in told.items()}
        shortlist = device.shortlist()
        order = sorted(states) if shortlist is None else shortlist[ShortlistKey.EXPERTS].tolist()
        logits = [_all_splits(device, states[expert], latents) for expert in order]
        kept = {name: np.stack([one[name] for one in logits], axis=1) for name in _splits(device)}
    kept = {name: np.array(value) for name, value in kept.items()}
    if device.config.gate.folds:
        kept[HOLDOUT][:, own] = device.store.load(OUT_OF_FOLD)[ExpertKey.LOGITS]
    device.store.save(ANSWERS, kept)
    return records.reply(message, metrics={NUM_EXAMPLES: len(device.train_labels)})


def _splits(device: Device) -> tuple[str, ...]:
    """Which latents of this client every expert answers."""
    return (HOLDOUT, *device.config.data.tests)


def _leaving(device: Device) -> tuple[str, ...]:
    """Which latents of this client leave it in stage 2, where experts stay at home."""
    return (HOLDOUT,) if device.config.has_shortlists else _splits(device)


def _all_splits(
    device: Device, state: dict[str, np.ndarray], latents: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    expert = device.expert(latents["train"].shape[1])
    records.load_into(expert.state_dict(), state)
    return {name: said_to(device, expert, latents[name]).numpy() for name in _splits(device)}


def _out_of_fold(device: Device, network: Classifier, latents: dict[str, np.ndarray]) -> np.ndarray:
    """What experts that did not see them say to the training latents: logits [N, C].

    Stacking's rule (Wolpert 1992; van der Laan et al. 2007): a gate that saw an expert's answers to
    its own training data would send everything home. Each of ``gate.folds`` parts is answered by an
    expert trained on the others, so that the gate can learn from all of a client's data.
    """
    size = len(latents["train"])
    order = numpy_stream(device.seed("folds")).permutation(size)
    logits = np.zeros((size, device.data.num_classes), np.float32)
    for fold in np.array_split(order, min(device.config.gate.folds, size)):
        rest = np.setdiff1d(np.arange(size), fold)
        expert, _ = _train_expert(device, network, latents, rest)
        logits[fold] = said_to(device, expert, latents["train"][fold]).numpy()
    return logits


def _train_expert(
    device: Device, network: Classifier, latents: dict[str, np.ndarray], chosen: np.ndarray
) -> tuple[Expert, float]:
    """Eq. 5 of the NMoE paper on the chosen cached latents.

    Raises:
        ReplyError: The expert's answers to these latents are not finite, as those of one whose
            weights are, but too large.
    """
    settings = device.config.expert
    expert = device.fresh_expert(latents["train"].shape[1])
    if settings.init != "scratch":
        expert.load_state_dict(network.head.state_dict())
    if settings.init == "head" or settings.epochs == 0:
        return expert.eval(), 0.0
    rows = torch.from_numpy(latents["train"][chosen]).to(device.torch_device)
    labels = torch.from_numpy(latents["train-labels"][chosen]).to(device.torch_device)
    adjustment = settings.logit_adjustment * device.log_prior
    steps = settings.epochs * max(1, len(rows) // settings.batch_size)
    seed = device.seed("expert")
    order = batch_indices(len(rows), settings.batch_size, first=0, count=steps, seed=seed)
    result = fit_along_cosine(
        expert,
        RowBatches((rows, labels), order),
        SharedLoss(
            labelled_loss,
            expert,
            constants=(adjustment,),
            options={"label_smoothing": settings.label_smoothing},
        ),
        parameters=expert.parameters(),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        steps=steps,
    )
    with torch.inference_mode():
        finite = bool(expert.eval()(rows).isfinite().all())
    if not finite:
        raise ReplyError("the expert answers its own training data with NaN or infinite entries")
    return expert, result.loss
