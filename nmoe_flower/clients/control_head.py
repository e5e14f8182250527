"""A control for simulations: one large head on everybody's latents, beside the same extractor.

What a mixture of small experts should be measured against if nobody minded where data are.
"""

import numpy as np
import torch
from torch.nn import functional as F

from nmoe_flower.clients.device import Device, predict
from nmoe_flower.data import Split
from nmoe_flower.models import Expert, Extractor
from nmoe_flower.records import ControlKey
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import batch_indices, fit_along_cosine, seeded

__all__ = ["pooled_head"]


def pooled_head(device: Device, extractor: Extractor) -> tuple[dict[str, np.ndarray], float]:
    """Train the head as experts are trained, and answer all tests: arrays, and the last loss.

    It is linear and as large as all experts together where these are linear: it names client and
    class at once, and what it says to a class is the sum over the clients. It takes
    ``run.control-epochs`` passes (0: ``expert.epochs``) at ``run.control-learning-rate``.
    """
    config, data = device.config, device.data
    everyone = device.everyone
    rows = np.concatenate([indices.train for indices in everyone])
    owners = np.repeat(np.arange(len(everyone)), [len(indices.train) for indices in everyone])
    goals = owners * data.num_classes + np.asarray(data.train.labels[rows])
    labels = torch.from_numpy(goals).to(device.torch_device)
    inputs = predict(device, extractor, data.train.images, rows).to(device.torch_device)
    with seeded(derive_seed(config.run.seed, "pooled-head")):
        head = Expert(inputs.shape[1], len(everyone) * data.num_classes, hidden=())
    head.to(device.torch_device)
    settings = config.expert
    epochs = config.run.control_epochs or settings.epochs
    steps = epochs * max(1, len(rows) // settings.batch_size)
    seed = derive_seed(config.run.seed, "pooled-head-batches")
    order = batch_indices(len(rows), settings.batch_size, first=0, count=steps, seed=seed)
    loss = fit_along_cosine(
        head,
        ((inputs[chosen], labels[chosen]) for chosen in order),
        lambda batch: F.cross_entropy(
            head(batch[0]), batch[1], label_smoothing=settings.label_smoothing
        ),
        parameters=head.parameters(),
        learning_rate=config.run.control_learning_rate,
        weight_decay=settings.weight_decay,
        steps=steps,
    ).loss
    validation = np.concatenate([other.validation for other in everyone])
    answers = [
        _answer(device, extractor, head, data.test, np.arange(len(data.test))),
        _answer(device, extractor, head, data.train, validation),
    ]
    return {ControlKey.PROBABILITIES: np.concatenate(answers)}, loss


@torch.inference_mode()
def _answer(
    device: Device, extractor: Extractor, head: Expert, split: Split, rows: np.ndarray
) -> np.ndarray:
    """Probabilities of the classes, [n, C]."""
    classes = device.data.num_classes
    if not len(rows):
        return np.empty((0, classes), np.float32)
    latents = predict(device, extractor, split.images, rows).to(device.torch_device)
    both = head.eval()(latents).softmax(dim=1)
    return np.asarray(both.view(len(rows), -1, classes).sum(dim=1).cpu().numpy())
