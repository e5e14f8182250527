"""A control for simulations: one large head on everybody's latents, beside the same extractor.

What a mixture of small experts should be measured against if nobody minded where data are.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nmoe_flower.clients.device import Device, predict
from nmoe_flower.data import Split
from nmoe_flower.models import Expert, Extractor
from nmoe_flower.records import ControlKey
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import batch_indices, fit, seeded

__all__ = ["pooled_head"]


def pooled_head(device: Device, extractor: Extractor) -> tuple[dict[str, np.ndarray], float]:
    """Train the head as experts are trained, and answer all tests: arrays, and the last loss.

    Its one hidden layer is as wide as gives it the parameters of all experts and a linear gate
    together. It takes ``run.control-epochs`` passes (0: ``expert.epochs``) at
    ``run.control-learning-rate``.
    """
    config, data = device.config, device.data
    rows = np.concatenate([indices.train for indices in device.everyone])
    latents = predict(device, extractor, data.train.images, rows)
    labels = torch.from_numpy(np.asarray(data.train.labels[rows])).to(device.torch_device)
    inputs = latents.to(device.torch_device)
    with seeded(derive_seed(config.run.seed, "pooled-head")):
        head = Expert(inputs.shape[1], data.num_classes, hidden=(_width(device, inputs.shape[1]),))
    head.to(device.torch_device)
    settings = config.expert
    epochs = config.run.control_epochs or settings.epochs
    steps = epochs * max(1, len(rows) // settings.batch_size)
    optimizer = torch.optim.AdamW(
        head.parameters(),
        lr=config.run.control_learning_rate,
        weight_decay=settings.weight_decay,
    )
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        seed = derive_seed(config.run.seed, "pooled-head-batches")
        for chosen in batch_indices(
            len(rows), settings.batch_size, first=0, count=steps, seed=seed
        ):
            yield inputs[chosen], labels[chosen]
            decay.step()

    loss = fit(
        head,
        batches(),
        lambda batch: F.cross_entropy(head(batch[0]), batch[1]),
        optimizer=optimizer,
    ).loss
    validation = np.concatenate([other.validation for other in device.everyone])
    answers = [
        _answer(device, extractor, head, data.test, np.arange(len(data.test))),
        _answer(device, extractor, head, data.train, validation),
    ]
    return {ControlKey.PROBABILITIES: np.concatenate(answers)}, loss


def _width(device: Device, latent_dim: int) -> int:
    """Units of the hidden layer: as many parameters as all experts and a linear gate, or fewer."""
    experts = device.num_clients
    expert = sum(parameter.numel() for parameter in device.expert(latent_dim).parameters())
    budget = experts * expert + experts * (latent_dim + 1)
    classes = device.data.num_classes
    return max(1, (budget - classes) // (latent_dim + 1 + classes))


@torch.inference_mode()
def _answer(
    device: Device, extractor: Extractor, head: Expert, split: Split, rows: np.ndarray
) -> np.ndarray:
    if not len(rows):
        return np.empty((0, head.num_classes), np.float32)
    latents = predict(device, extractor, split.images, rows).to(device.torch_device)
    return np.asarray(head.eval()(latents).softmax(dim=1).cpu().numpy())
