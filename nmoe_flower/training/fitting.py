"""One local loop for everything that is trained: ``fit(module, batches, batch_loss)``.

FedCE's classifiers, experts and gates differ only in the closure that turns a batch into a loss.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from nmoe_flower.errors import DataError
from nmoe_flower.rendezvous import in_company, meet
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training.fused import fused
from nmoe_flower.training.precision import autocast
from nmoe_flower.training.stack import stack_task, train_stacks
from nmoe_flower.training.task import FitResult

__all__ = [
    "batch_indices",
    "fit",
    "fit_along_cosine",
    "generator",
    "log_prior",
    "seeded",
    "sgd",
]

Batch = TypeVar("Batch")


def fit(
    module: nn.Module,
    batches: Iterable[Batch],
    batch_loss: Callable[[Batch], Tensor],
    *,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float = 0.0,
    normalise_gradient: bool = False,
    bf16: bool = False,
    cosine_steps: int = 0,
) -> FitResult:
    """Take one optimizer step per batch.

    Where several clients run together (`nmoe_flower.rendezvous`), those whose ``batches`` are
    `RowBatches` and whose ``batch_loss`` is one `SharedLoss` are trained at once. On the CPU steps
    are `fused` where that is safe.

    Args:
        module: What is trained; put in training mode, and back in evaluation mode at the end.
        batches: Anything ``batch_loss`` understands, one item per step.
        batch_loss: The scalar loss of a batch.
        optimizer: Holds the parameters that move.
        max_grad_norm: Clip the gradient's L2 norm to this; 0 does not clip.
        normalise_gradient: Scale every gradient to L2 norm 1, so that neither exploding nor
            vanishing gradients change the step length (Networked MoE, section III-C).
        bf16: Run forward passes under bfloat16 autocast.
        cosine_steps: Step at which the rate, which falls along half a cosine, is 0; there may be
            fewer batches, and training then ends on the way. 0: the rate stays.
    """
    if in_company():
        task = stack_task(
            module,
            batches,
            batch_loss,
            optimizer=optimizer,
            max_grad_norm=max_grad_norm,
            normalise_gradient=normalise_gradient,
            bf16=bf16,
            cosine_steps=cosine_steps,
        )
        if task is not None:
            stacked = meet(task, train_stacks)
            if stacked is not None:
                module.eval()
                return task.finish(stacked)
            batches = cast(Iterable[Batch], task.restore())
    module.train()
    decay = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cosine_steps)
        if cosine_steps
        else None
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    losses: list[Tensor] = []
    with ExitStack() as stepping:
        for batch in batches:
            if bf16:
                with autocast(bf16, device):
                    loss = batch_loss(batch)
            else:  # an empty context costs as much as a small layer
                loss = batch_loss(batch)
            for p in parameters:
                p.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            _limit(parameters, max_grad_norm, to_one=normalise_gradient)
            if not losses:
                stepping.enter_context(fused(optimizer))
            optimizer.step()
            if decay is not None:
                decay.step()
            losses.append(loss.detach())
    module.eval()
    mean = float(torch.stack(losses).cpu().double().mean()) if losses else 0.0
    return FitResult(loss=mean, steps=len(losses))


def _limit(parameters: Sequence[nn.Parameter], largest: float, *, to_one: bool) -> None:
    """Scale gradients to an L2 norm of 1, or to at most ``largest`` if that is not 0."""
    if to_one:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        for p in parameters:
            if p.grad is not None:
                p.grad.div_(norm + 1e-12)
    elif largest > 0:
        torch.nn.utils.clip_grad_norm_(parameters, largest)


def fit_along_cosine(
    module: nn.Module,
    batches: Iterable[Batch],
    batch_loss: Callable[[Batch], Tensor],
    *,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    steps: int,
    bf16: bool = False,
) -> FitResult:
    """`fit` by AdamW, whose rate falls along half a cosine.

    Args:
        module: What is trained.
        batches: Anything ``batch_loss`` understands, one item per step.
        batch_loss: The scalar loss of a batch.
        parameters: What of the module moves.
        learning_rate: Rate of the first step.
        weight_decay: AdamW's, of all parameters alike.
        steps: Step at which the rate is 0; there may be fewer batches, and training then ends on
            the way.
        bf16: Run forward passes under bfloat16 autocast.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    return fit(
        module,
        batches,
        batch_loss,
        optimizer=optimizer,
        bf16=bf16,
        cosine_steps=max(1, steps),
    )


def sgd(
    module: nn.Module, *, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> torch.optim.SGD:
    """SGD with Nesterov momentum whose weight decay spares biases and norms (one-dimensional)."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    spared = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        momentum=momentum,
        nesterov=momentum > 0,
    )


def batch_indices(
    size: int, batch_size: int, *, first: int, count: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield the index arrays of steps ``first .. first + count - 1`` through shuffled epochs.

    Stateless: step ``t`` is the same whoever asks, so a client that is resumed, or that skipped
    rounds, needs no memory of where it was. Each epoch is a fresh permutation; its tail that does
    not fill a batch is left out.

    Raises:
        DataError: There is no row, or ``batch_size`` is below 1.

    >>> [b.tolist() for b in batch_indices(4, 2, first=0, count=2, seed=0)] == [
    ...     b.tolist() for t in (0, 1) for b in batch_indices(4, 2, first=t, count=1, seed=0)]
    True
    """
    if size < 1 or batch_size < 1:
        raise DataError(f"{size} rows in batches of {batch_size}; allowed: at least 1 of each")
    batch_size = min(batch_size, size)
    per_epoch = size // batch_size
    for step in range(first, first + count):
        order = _epoch(size, seed, step // per_epoch)
        start = (step % per_epoch) * batch_size
        yield order[start : start + batch_size].copy()


@lru_cache(maxsize=16)  # who is asked round by round takes a step or two of each epoch
def _epoch(size: int, seed: int, epoch: int) -> np.ndarray:
    return numpy_stream(seed, "epoch", epoch).permutation(size)


def log_prior(labels: np.ndarray, num_classes: int) -> Tensor:
    """Smoothed log class frequencies [C] of a client, for logit adjustment.

    Menon et al. 2021, "Long-tail learning via logit adjustment": adding ``log prior`` to the logits
    while training makes the raw logits those of a class-balanced classifier.
    """
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64) + 0.5
    return torch.from_numpy(np.log(counts / counts.sum())).float()


def generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator of its own for a derived seed."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build modules inside with torch's global streams at ``seed``; outside they are as they were.

    ``torch.manual_seed`` takes a stack trace for every kind of accelerator that is not in use; that
    costs more than seeding, so only those in use are seeded here.
    """
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
