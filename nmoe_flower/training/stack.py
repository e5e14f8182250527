"""Train networks of one shape at once: N clients take a step in the time Python needs for one.

The weights of N clients are the rows of one matrix, [N, P]. A step runs the network on all of them
with `torch.func`, one backward pass gives each row its own gradient, and the optimizer's arithmetic
is torch's, row by row. Every client sees the batches it would see alone, in the same order, and has
its own rate; what it ends with is what the loop gives, up to rounding.

- Clients that take fewer steps stand last and leave the matrix when they are done.
- Shorter batches are filled up with rows that count nothing, where the loss is a mean over rows;
  elsewhere only clients with batches of one size are put together.
- What draws random numbers inside the network, or keeps running averages, is not trained here.
"""

import logging
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import sqrt
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nmoe_flower.training.task import DrawnBatches, FitResult, RowBatches, SharedLoss

__all__ = [
    "MOST_ON_CPU",
    "SLOW_ON_CPU",
    "StackTask",
    "Stacked",
    "cosine_rates",
    "stack_task",
    "train_stacks",
]

_log = logging.getLogger(__name__)

_GATHERED = 1 << 28  # bytes of rows that are copied into one tensor
_OPTIMIZERS = (torch.optim.SGD, torch.optim.AdamW)
SLOW_ON_CPU: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MOST_ON_CPU = 50_000  # weights of a network; larger ones keep a CPU busy one by one
_AVERAGING = nn.modules.batchnorm._BatchNorm
_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase)
_SETTINGS = ("betas", "eps", "amsgrad", "maximize", "momentum", "dampening", "nesterov")


def stack_task(
    module: nn.Module,
    batches: object,
    batch_loss: object,
    *,
    optimizer: torch.optim.Optimizer,
    bf16: bool,
    cosine_steps: int,
    max_grad_norm: float,
    normalise_gradient: bool,
) -> "StackTask | None":
    """What `fit` was called with, as a task for a stack; None, told in the log, if it cannot be."""
    reason = _why_alone(module, batches, batch_loss, optimizer)
    if bf16:
        reason = "it computes in bfloat16"
    if (
        reason
        or not isinstance(batch_loss, SharedLoss)
        or not isinstance(batches, RowBatches | DrawnBatches)
    ):
        _tell(type(module).__name__, reason)
        return None
    return StackTask(
        batches, batch_loss, optimizer, cosine_steps, max_grad_norm, normalise_gradient
    )


def _why_alone(
    module: nn.Module, batches: object, batch_loss: object, optimizer: torch.optim.Optimizer
) -> str:
    """Why this can only be trained by itself, in words; empty if it can be stacked."""
    if not isinstance(batch_loss, SharedLoss):
        return "its loss is a function of its own"
    if not isinstance(batches, RowBatches | DrawnBatches):
        return "its batches are told one by one"
    if module is not batch_loss.network:
        return "it is trained inside of another network"
    if type(optimizer) not in _OPTIMIZERS:
        return f"{type(optimizer).__name__} is not stacked"
    groups = optimizer.param_groups
    if any(group.get("amsgrad") or group["maximize"] for group in groups):
        return "its optimizer has amsgrad or maximize"
    if len({(group["lr"], *_settings(group)) for group in groups}) > 1:
        return "its parameters have several rates"
    on_cpu = next(module.parameters()).device.type == "cpu"
    if on_cpu and sum(p.numel() for p in module.parameters()) > MOST_ON_CPU:
        return f"a CPU is slower at many networks of more than {MOST_ON_CPU:,} weights at once"
    for part in module.modules():
        if on_cpu and isinstance(part, SLOW_ON_CPU):
            return f"a CPU is slower at many {type(part).__name__} at once"
        if isinstance(part, _AVERAGING) and part.track_running_stats:
            return f"{type(part).__name__} keeps running averages"
        if isinstance(part, _DRAWING):
            return f"{type(part).__name__} draws numbers inside the network"
    return ""


def _settings(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(group.get(name) for name in _SETTINGS)


@lru_cache(maxsize=256)
def cosine_rates(rate: float, steps: int) -> tuple[float, ...]:
    """The rates of so many steps along half a cosine from ``rate`` to 0, as torch has them."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        decay.step()
    return tuple(rates)


@dataclass(eq=False)
class StackTask:
    """What one client asks `fit` for, with the weights it starts from.

    Attributes:
        batches: The batches it takes, of which none was taken before.
        loss: What it minimises; the network may be one that other clients load their weights into.
        optimizer: Holds the parameters that move, and what it remembers of steps before.
        cosine_steps: The step at which the rate would be 0; 0: the rate stays.
        max_grad_norm: As `fit` takes it.
        normalise_gradient: As `fit` takes it.
        steps: How many steps it takes.
        batch_size: Rows of each of its batches.
    """

    batches: RowBatches | DrawnBatches
    loss: SharedLoss
    optimizer: torch.optim.Optimizer
    cosine_steps: int = 0
    max_grad_norm: float = 0.0
    normalise_gradient: bool = False

    steps: int = field(init=False)
    batch_size: int = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.batches, RowBatches):
            chosen = list(self.batches.order)
            order = np.stack(chosen) if chosen else np.empty((0, 1), np.int64)
            self.batches = RowBatches(self.batches.tensors, order)
            self.steps, self.batch_size = map(int, order.shape)
        else:
            self.steps, self.batch_size = self.batches.steps, self.batches.size
        moved = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        self.moving = {
            name: p
            for name, p in self.loss.network.named_parameters()
            if id(p) in moved and p.requires_grad
        }
        self.decays = tuple(moved[id(p)]["weight_decay"] for p in self.moving.values())
        tensors = self.loss.network.state_dict(keep_vars=True)
        # Another client may load its weights before this one goes on.
        self.start = _row(p.detach() for p in self.moving.values())
        self.still = {
            name: tensor.detach().clone()
            for name, tensor in [*tensors.items(), *self.loss.network.named_buffers()]
            if name not in self.moving
        }

    @cached_property
    def shape(self) -> Hashable:
        """What must be equal for clients to be trained together."""
        return (
            self.loss.function,
            tuple(sorted(self.loss.options.items())),
            self.loss.by_rows or self.batch_size,
            type(self.loss.network),
            repr(self.loss.network),
            tuple(_form(self.moving)),
            tuple(_form(self.still)),
            tuple(_form(dict(enumerate(self.loss.constants)))),
            self._rows,
            type(self.optimizer),
            _settings(self.optimizer.param_groups[0]),
            self.decays,
            tuple(sorted(self.memory)),
            self.taken,
            self.max_grad_norm,
            self.normalise_gradient,
        )

    @property
    def _rows(self) -> Hashable:
        """What a row of a batch is; of those that are drawn nobody knows before."""
        if isinstance(self.batches, DrawnBatches):
            return None
        return tuple((t.shape[1:], t.dtype, t.device) for t in self.batches.tensors)

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """What the optimizer remembers of steps before, a row [P] by name; empty at first."""
        states = [self.optimizer.state.get(p, {}) for p in self.moving.values()]
        names = ("momentum_buffer", "exp_avg", "exp_avg_sq")
        return {
            name: _row(state[name] for state in states)
            for name in names
            if all(state.get(name) is not None for state in states)
        }

    @cached_property
    def taken(self) -> int:
        """Steps that the optimizer took before."""
        state = self.optimizer.state.get(next(iter(self.moving.values())), {})
        return int(state.get("step", 0))

    def rate(self, step: int) -> float:
        """The rate of one of its steps."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        return cosine_rates(rate, self.cosine_steps)[step] if self.cosine_steps else rate

    @torch.no_grad()
    def restore(self) -> RowBatches | DrawnBatches:
        """Load what it starts from, for a loop of its own over the batches that are returned."""
        self._load(self.start)
        return self.batches

    @torch.no_grad()
    def finish(self, stacked: "Stacked") -> FitResult:
        """Load what it has ended with, into the network and the optimizer."""
        self._load(stacked.weights)
        for name, kept in stacked.memory.items():
            for p, part in zip(self.moving.values(), _parts(kept, self.moving), strict=True):
                self.optimizer.state[p][name] = torch.empty_like(p).copy_(part)
        if "exp_avg" in stacked.memory:
            for p in self.moving.values():
                self.optimizer.state[p]["step"] = torch.tensor(float(self.taken + self.steps))
        return stacked.result

    def _load(self, row: Tensor) -> None:
        for p, part in zip(self.moving.values(), _parts(row, self.moving), strict=True):
            p.copy_(part)
        network = self.loss.network
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for name, value in self.still.items():
            tensors[name].copy_(value)


class Stacked(NamedTuple):
    """What came out for one client: to `StackTask.finish` with."""

    result: FitResult
    weights: Tensor
    memory: dict[str, Tensor]


def _form(tensors: Mapping[Any, Tensor]) -> Iterator[Hashable]:
    for name, tensor in tensors.items():
        yield name, tensor.shape, tensor.dtype, tensor.device


def _row(tensors: Iterator[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _parts(rows: Tensor, like: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Tensors [..., *shape] of rows [..., P], in the order of ``like``."""
    pieces = torch.split(rows, [tensor.numel() for tensor in like.values()], dim=-1)
    for piece, tensor in zip(pieces, like.values(), strict=True):
        yield piece.view(*rows.shape[:-1], *tensor.shape)


def train_stacks(tasks: Sequence[StackTask]) -> list[Stacked | None]:
    """Train those together that have one shape; None for what must be trained by itself."""
    found: list[Stacked | None] = [None] * len(tasks)
    stacks: dict[Hashable, list[int]] = defaultdict(list)
    for place, task in enumerate(tasks):
        if task.steps:
            stacks[task.shape].append(place)
    for places in stacks.values():
        if len(places) == 1:
            continue
        try:
            with warnings.catch_warnings():  # an operation may be done client by client
                warnings.filterwarnings("ignore", "There is a performance drop")
                results = _Stack([tasks[place] for place in places]).train()
        except RuntimeError as error:  # an operation that torch.func has no rule for
            network = type(tasks[places[0]].loss.network).__name__
            _tell(network, str(error).partition("\n")[0])
            continue
        for place, result in zip(places, results, strict=True):
            found[place] = result
    return found


@lru_cache(maxsize=64)  # once for each reason
def _tell(network: str, reason: str) -> None:
    _log.warning("engine.stack: %s is trained alone: %s", network, reason)


class _Stack:
    """Clients of one shape; those with most steps first."""

    def __init__(self, tasks: Sequence[StackTask]) -> None:
        self._order = sorted(range(len(tasks)), key=lambda place: -tasks[place].steps)
        self._tasks = [tasks[place] for place in self._order]
        first = self._tasks[0]
        self._first = first
        self._sizes = np.array([task.batch_size for task in self._tasks])
        self._largest = int(self._sizes.max())
        self._device = first.start.device
        self._weights = torch.stack([task.start for task in self._tasks])
        self._still = {
            name: torch.stack([task.still[name] for task in self._tasks]) for name in first.still
        }
        self._constants = [
            torch.stack(each) for each in zip(*(t.loss.constants for t in self._tasks), strict=True)
        ]
        self._memory = {
            name: torch.stack([task.memory[name] for task in self._tasks]) for name in first.memory
        }
        self._decay, self._decays = _decay(first), any(first.decays)
        self._batches = _batches(self._tasks, self._largest)
        even = bool((self._sizes == self._largest).all())
        self._counts: Tensor | None = None
        if not even:
            filled = np.arange(self._largest) < self._sizes[:, None]
            self._counts = torch.from_numpy(filled / self._sizes[:, None]).float().to(self._device)
        first.loss.network.train()

    def train(self) -> list[Stacked]:
        """Take all steps, and tell what each client has ended with."""
        losses: list[Tensor] = []
        leaf = self._weights
        for step in range(self._tasks[0].steps):
            active = sum(task.steps > step for task in self._tasks)
            if not step or active < len(leaf):
                leaf = self._weights[:active].detach().requires_grad_()
            each = self._losses(leaf, step)
            leaf.grad = None
            each.sum().backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            with torch.no_grad():
                self._move(self._weights[:active], self._limited(leaf.grad), step)
            losses.append(each.detach())
        self._first.loss.network.eval()
        return self._finished(losses)

    def _losses(self, weights: Tensor, step: int) -> Tensor:
        """The loss of each client on its batch of this step, [N]."""
        active = len(weights)
        batch = self._batches.take(step, active)
        names = self._first.moving
        moving = dict(zip(names, _parts(weights, names), strict=True))
        still = {name: value[:active] for name, value in self._still.items()}
        constants = tuple(value[:active] for value in self._constants)
        if self._counts is None:
            losses: Tensor = vmap(self._loss)(moving, still, batch, constants)
            return losses
        rows: Tensor = vmap(self._loss_of_rows)(moving, still, batch, constants)
        return (rows * self._counts[:active]).sum(dim=1)

    def _loss(
        self,
        moving: Mapping[str, Tensor],
        still: Mapping[str, Tensor],
        batch: tuple[Tensor, ...],
        constants: tuple[Tensor, ...],
        **reduction: str,
    ) -> Tensor:
        loss = self._first.loss

        def network(*inputs: Any, **named: Any) -> Any:
            return functional_call(loss.network, {**moving, **still}, inputs, named)

        return loss.function(network, batch, *constants, **loss.options, **reduction)

    def _loss_of_rows(self, *parts: Any) -> Tensor:
        return self._loss(*parts, reduction="none")

    def _limited(self, gradient: Tensor) -> Tensor:
        task = self._first
        if not (task.normalise_gradient or task.max_grad_norm > 0):
            return gradient
        norm: Tensor = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        if task.normalise_gradient:
            return gradient / (norm + 1e-12)
        return gradient * (task.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)

    def _move(self, weights: Tensor, gradient: Tensor, step: int) -> None:
        """The arithmetic of torch's optimizer, in its order, on rows [N, P]."""
        active = len(weights)
        rates = [task.rate(step) for task in self._tasks[:active]]
        rate = np.array(rates)[:, None]
        settings = self._first.optimizer.param_groups[0]
        if isinstance(self._first.optimizer, torch.optim.SGD):
            self._sgd(weights, gradient, _like(weights, rate), settings)
        else:
            self._adamw(weights, gradient, rate, settings, self._first.taken + step + 1)

    def _sgd(
        self, weights: Tensor, gradient: Tensor, rate: Tensor, settings: Mapping[str, Any]
    ) -> None:
        if self._decays:
            gradient = gradient + weights * self._decay
        if momentum := settings["momentum"]:
            if "momentum_buffer" in self._memory:
                buffer = self._memory["momentum_buffer"][: len(weights)]
                buffer.mul_(momentum).add_(gradient, alpha=1 - settings["dampening"])
            else:
                self._memory["momentum_buffer"] = buffer = gradient.clone()
            gradient = gradient.add(buffer, alpha=momentum) if settings["nesterov"] else buffer
        weights.sub_(gradient * rate)

    def _adamw(
        self,
        weights: Tensor,
        gradient: Tensor,
        rate: npt.NDArray[np.float64],
        settings: Mapping[str, Any],
        taken: int,
    ) -> None:
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in self._memory:
                self._memory[name] = torch.zeros_like(self._weights)
        first, second = settings["betas"]
        mean = self._memory["exp_avg"][: len(weights)]
        square = self._memory["exp_avg_sq"][: len(weights)]
        if self._decays:
            weights.mul_(self._kept(weights, rate))
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = (square.sqrt() / sqrt(1 - second**taken)).add_(settings["eps"])
        weights.sub_(mean.div(scale).mul_(_like(weights, rate / (1 - first**taken))))

    def _kept(self, weights: Tensor, rate: npt.NDArray[np.float64]) -> Tensor:
        """What weight decay leaves of each weight, [N, 1] or [N, P]."""
        if isinstance(self._decay, Tensor):
            return 1 - _like(weights, rate) * self._decay
        return _like(weights, 1 - rate * self._decay)

    def _finished(self, losses: Sequence[Tensor]) -> list[Stacked]:
        """What came out for each client, in the order in which they were given."""
        lost = torch.zeros(len(losses), len(self._tasks), device=self._device)
        for row, each in zip(lost, losses, strict=True):
            row[: len(each)] = each
        sums = lost.cpu().double().sum(dim=0)  # not every device has doubles
        found = [
            Stacked(
                FitResult(total / task.steps, task.steps),
                self._weights[place],
                {name: rows[place] for name, rows in self._memory.items()},
            )
            for place, (task, total) in enumerate(zip(self._tasks, sums.tolist(), strict=True))
        ]
        return [found[place] for place in np.argsort(self._order)]


def _like(weights: Tensor, column: npt.NDArray[np.float64]) -> Tensor:
    return torch.tensor(column, dtype=weights.dtype, device=weights.device)


def _decay(task: StackTask) -> Tensor | float:
    """The weight decay of all weights, or of each, [P]."""
    if len(set(task.decays)) == 1:
        return float(task.decays[0])
    each = [
        torch.full((p.numel(),), decay, dtype=p.dtype, device=p.device)
        for p, decay in zip(task.moving.values(), task.decays, strict=True)
    ]
    return torch.cat(each)


class _Batches(Protocol):
    """Where a step takes the batches of its clients."""

    def take(self, step: int, active: int) -> tuple[Tensor, ...]:
        """Batches [N, b, ...] of the first N clients; short ones are filled up with any rows."""


def _batches(tasks: Sequence[StackTask], size: int) -> _Batches:
    """The batches of clients of one kind, filled up to one size."""
    held = [task.batches for task in tasks if isinstance(task.batches, RowBatches)]
    drawn = [task.batches for task in tasks if isinstance(task.batches, DrawnBatches)]
    return _Drawn(drawn, size) if drawn else _Rows(held, size)


class _Rows:
    """The rows of all clients, copied into one tensor if they are not too many."""

    def __init__(self, batches: Sequence[RowBatches], size: int) -> None:
        self._each = [own.tensors for own in batches]
        self._orders = [np.asarray(own.order) for own in batches]
        self._size = size
        self._offsets = np.cumsum([0, *(len(own[0]) for own in self._each[:-1])])
        self._all: list[Tensor] | None = None
        if sum(tensor.nbytes for own in self._each for tensor in own) <= _GATHERED:
            self._all = [torch.cat(kind) for kind in zip(*self._each, strict=True)]

    def take(self, step: int, active: int) -> tuple[Tensor, ...]:
        """Batches [N, b, ...] of the first N clients; short ones are filled up with row 0."""
        index = np.zeros((active, self._size), np.int64)
        for row, order in zip(index, self._orders[:active], strict=True):
            row[: order.shape[1]] = order[step]
        if self._all is not None:
            places = torch.from_numpy((index + self._offsets[:active, None]).ravel())
            return tuple(
                rows.index_select(0, places.to(rows.device)).view(*index.shape, *rows.shape[1:])
                for rows in self._all
            )
        chosen = [torch.from_numpy(own) for own in index]
        return tuple(
            torch.stack([rows.index_select(0, own) for rows, own in zip(kind, chosen, strict=True)])
            for kind in zip(*self._each[:active], strict=True)
        )


class _Drawn:
    """Batches that each client makes when they are needed."""

    def __init__(self, batches: Sequence[DrawnBatches], size: int) -> None:
        self._each = [iter(own) for own in batches]
        self._size = size

    def take(self, step: int, active: int) -> tuple[Tensor, ...]:
        """Batches [N, b, ...] of the first N clients; short ones are filled up with zeros."""
        drawn = [next(own) for own in self._each[:active]]
        return tuple(
            torch.stack([self._filled(part) for part in kind]) for kind in zip(*drawn, strict=True)
        )

    def _filled(self, rows: Tensor) -> Tensor:
        missing = self._size - len(rows)
        if not missing:
            return rows
        return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
