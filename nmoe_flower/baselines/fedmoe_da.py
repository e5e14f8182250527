"""FedMoE-DA: each client has experts of its own, mixed with those of clients in like domains.

Zhan et al. 2024, arXiv:2411.02115. Client i trains a trunk, a router with a row g_ik for each
expert, and its own E experts. A row tells the domain of its expert. A client must send all of them,
``trunk.*``, ``gate.<k>.*`` and ``expert.<k>.*`` of all E, and ``num-examples``. After a round:

1. r = cos(g_ik, g_jl) of all pairs of experts of all clients (equation 8).
2. Of each expert's r, itself and the P = ``baseline.neighbours`` most similar stay, ties with them
   (equation 9).
3. A = softmax(r / T) over those that stay, T = 1 (equation 10).
4. theta_ik <- sum_jl A theta_jl (equation 11). The server averages trunk and router by samples.

A is made anew every 5 rounds, and whenever a client is met for the first time. The rows compared
are those that clients sent: after the average all would be alike. A row of zeros is like no other:
r = 0.

Ours: peers do not reach each other while Flower trains, so the server holds every client's experts
and mixes them; ``peer_bytes`` of a round's metrics counts what peers would have fetched, each part
of an expert once for each client. An expert of a client that was away counts as it was last. The
router is dense; there is no loss for balance; with ``baseline.size = net`` it reads raw pixels. A
client is tested with its own mixed experts under the averaged router. The equations were read in
reimplementations; no code of the authors was found.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from scipy.sparse import csr_array

from nmoe_flower import records
from nmoe_flower.baselines.partial import PartialExperts, expert_of, name_at, of_client
from nmoe_flower.baselines.submixture import SubMixture
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.strategies import StreamingOptions, Usable, require_number, require_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FEDMOE_DA", "MixedExperts", "mixing_weights"]

_REFRESH = 5  # rounds, I
_TEMPERATURE = 1.0  # T

Arrays = dict[str, np.ndarray]


class MixedExperts(PartialExperts):
    """Experts of every client, mixed by how alike their router rows are.

    The arrays it returns hold, beside the shared ones, ``client.<i>.expert.<k>.*`` of every client
    met: `nmoe_flower.baselines.of_client` gives what one client is to have of them. Memory grows
    with clients: that is the system, not this server.

    Args:
        experts: E, of each client.
        neighbours: P, how many others each expert is mixed with; 0: none.
        temperature: T, above 0; large: all that stay count alike.
        refresh: Rounds for which the weights stay, I, at least 1.
        **options: What ``StreamingFedAvg`` and FedAvg take.

    Attributes:
        rows: By client: its router rows as it sent them last, [E, D].
    """

    rows_are_shared = True  # the server averages them

    def __init__(
        self,
        experts: int,
        neighbours: int = 5,
        *,
        temperature: float = _TEMPERATURE,
        refresh: int = _REFRESH,
        **options: Unpack[StreamingOptions],
    ) -> None:
        super().__init__(experts, masses=False, **options)
        self.neighbours = require_whole("neighbours", neighbours)
        self.temperature = require_number("temperature", temperature, above=True)
        self.refresh = require_whole("refresh", refresh, 1)
        self.rows: dict[int, np.ndarray] = {}
        self._weights: NDArray[np.float64] = np.zeros((0, 0))
        self._of: list[int] = []  # the clients that the weights are of
        self._age = 0

    def part(
        self, arrays: Mapping[str, np.ndarray], client: int, held: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """The shared arrays, and the client's own experts."""
        return of_client(arrays, client)

    def mass(self, expert: int | None, usable: Usable) -> float:
        """Nothing for experts: they are mixed, not averaged."""
        return super().mass(None, usable) if expert is None else 0.0

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Keep a client's experts, and their rows, until all have replied.

        Raises:
            ReplyError: An array is missing.
        """
        if missing := sorted(self._given.get(client, {}).keys() - usable.arrays.keys()):
            raise ReplyError(
                f"array {missing[0]!r} is missing: all of a client's experts are mixed"
            )
        self._found[client] = {
            name: value for name, value in usable.arrays.items() if expert_of(name) is not None
        }

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average trunk and router, then mix the experts of those who replied.

        Raises:
            ConfigError: The arrays have no rows of a router.
            RoundError: Fewer than ``min_replies`` replies could be used.
        """
        averaged, metrics = self.averaged(server_round, replies)
        found = dict(averaged)
        for client, arrays in self._found.items():
            rows = [_row(arrays, k) for k in range(self.experts)]
            self.rows[client] = np.stack(rows)
            for name, value in arrays.items():
                if self.owner(name) is not None:
                    found[name_at(client, name)] = value
        self._weigh()
        peers = self._mix(found, sorted(self._found))
        self._found = {}
        told = MetricRecord({**(metrics or {}), "peer_bytes": peers})
        return records.from_numpy(found), told

    def _weigh(self) -> None:
        clients = sorted(self.rows)
        if self._of == clients and self._age % self.refresh:
            self._age += 1
            return
        every = np.concatenate([self.rows[client] for client in clients])
        self._weights = mixing_weights(every, self.neighbours, temperature=self.temperature)
        self._of, self._age = clients, 1

    def _mix(self, arrays: Arrays, replied: Sequence[int]) -> int:
        """Mix in place the experts of those who replied; returns what peers would have sent."""
        experts = [(client, k) for client in self._of for k in range(self.experts)]
        mine = np.repeat(np.isin(self._of, replied), self.experts)
        weights = csr_array(self._weights[mine])
        for rest in sorted({n.split(".", 2)[2] for n in arrays if n.startswith("expert.0.")}):
            names = [name_at(client, f"expert.{k}.{rest}") for client, k in experts]
            every = np.stack([arrays[name] for name in names])
            precise = np.result_type(every.dtype, np.float32)  # float64 takes five times as long
            mixed = weights.astype(precise) @ every.reshape(len(every), -1)
            mixed = mixed.reshape(-1, *every.shape[1:]).astype(every.dtype, copy=False)
            arrays.update(zip(compress(names, mine), mixed, strict=True))
        one = sum(value.nbytes for name, value in arrays.items() if name.startswith("expert.0."))
        reads = self._weights.reshape(len(self._of), self.experts, -1).any(axis=1)
        others = np.repeat(~np.eye(len(self._of), dtype=bool), self.experts, axis=1)
        return one * int((reads & others)[mine[:: self.experts]].sum())

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each client of a test its own part."""
        encoded = records.Encoded(arrays)
        messages = list(super().configure_evaluate(server_round, arrays, config, grid))
        self.last_exchange.bytes_down = 0
        for message in messages:
            node = message.metadata.dst_node_id
            own = of_client(encoded.arrays, self.partitions.get(node, node))
            message.content = RecordDict(
                {**message.content, self.arrayrecord_key: encoded.record(own)}
            )
            self.last_exchange.bytes_down += records.array_bytes(message.content)
        return messages

    def state(self) -> dict[str, np.ndarray]:
        """The rows sent last, and the weights in use."""
        clients = sorted(self.rows)
        rows = np.array([self.rows[client] for client in clients])
        return {
            "clients": np.array(clients, np.int64),
            "rows": rows.reshape(len(clients), self.experts, -1) if clients else np.zeros((0, 0)),
            "weights": self._weights,
            "of": np.array(self._of, np.int64),
            "age": np.array(self._age),
        }

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        pairs = zip(arrays["clients"].tolist(), np.array(arrays["rows"]), strict=True)
        self.rows = dict(pairs)
        self._weights = np.array(arrays["weights"])
        self._of, self._age = arrays["of"].tolist(), int(arrays["age"])


def mixing_weights(
    rows: np.ndarray, neighbours: int, *, temperature: float = 1.0
) -> "NDArray[np.float64]":
    """The matrix A of equations 8 to 10: a row for each expert, in sum 1.

    Args:
        rows: A router row of each expert, [M, D].
        neighbours: P, how many of the most similar others stay, and those tied with the last.
        temperature: T, above 0.

    >>> mixing_weights(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 1).round(3).tolist()
    [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.212, 0.212, 0.576]]
    """
    found = np.asarray(rows, np.float64)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    unit = np.divide(found, norms, out=np.zeros_like(found), where=norms > 0)
    alike = np.clip(unit @ unit.T, -1.0, 1.0)
    kept = np.eye(len(found), dtype=bool)
    if neighbours > 0 and len(found) > 1:
        others = np.where(kept, -np.inf, alike)
        place = min(neighbours, len(found) - 1)
        least = np.sort(others, axis=1)[:, -place]
        kept |= others >= least[:, None] - 1e-12
    scores = np.where(kept, alike / temperature, -np.inf)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
    return weights


def _row(arrays: Mapping[str, np.ndarray], expert: int) -> np.ndarray:
    """An expert's row of the router: its direction, without the bias."""
    prefix = f"gate.{expert}."
    found = [v.ravel() for n, v in sorted(arrays.items()) if n.startswith(prefix) and v.ndim > 1]
    if not found:
        raise ConfigError(
            f"experts are mixed by their rows of the router, and the arrays have no {prefix}*: "
            "initial arrays must hold a row for each expert"
        )
    return np.concatenate(found)


class _FedMoEDA(SubMixture):
    name = "fedmoe-da"

    def server_copies(self, config: Config) -> int:
        return config.data.num_clients

    def server_extra(self, config: Config) -> int:
        """The weights of all pairs of experts, the similarities they come of, and their order."""
        return 3 * 8 * (config.data.num_clients * self.experts(config)) ** 2

    def strategy(self, config: Config, **options: Unpack[StreamingOptions]) -> PartialExperts:
        return MixedExperts(self.experts(config), config.baseline.neighbours, **options)


FEDMOE_DA = _FedMoEDA()
