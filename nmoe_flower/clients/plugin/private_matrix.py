"""A Flower client mod that makes one matrix of every reply private, whatever the strategy.

``ClientApp(mods=[PrivateMatrix(...)])``: the app answers with a symmetric matrix R of its samples,
such as a correlation or a covariance; what leaves the device is R with the Gaussian mechanism's
noise, packed by ``privacy.svec``. The server unpacks with ``privacy.smat``.
"""

import logging
from pathlib import Path
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from nmoe_flower import records
from nmoe_flower.clients.private import MatrixRelease
from nmoe_flower.errors import BudgetError, ConfigError
from nmoe_flower.privacy import (
    Adjacency,
    Budget,
    GaussianMechanism,
    noise_multiplier_for,
    smat,
    svec,
)
from nmoe_flower.records import CORRELATION, NUM_EXAMPLES, PARTITION_ID, CorrelationKey

__all__ = ["PrivateMatrix"]

log = logging.getLogger(__name__)


class PrivateMatrix:
    """Replaces an array ``R = (1/n) sum_x S_x`` of a reply by a private release of it.

    The mod sees R alone, so the app has to keep what the proof needs: S_x is the mean of z z^T over
    the views of sample x, every z has norm at most ``clip``, each sample is in R exactly once, and
    z depends on no other sample (no BatchNorm in training mode). An R of impossible trace or
    eigenvalues is refused. ``privacy.ClippedCorrelation`` clips and counts for you.

    The noise comes from the operating system. Every reply with R in it is a release: it is written
    to the ledger on the disk before it leaves, and beyond the budget R is left out of the reply.
    Only R is private: the reply's other records leave as they are.

    Args:
        folder: Where the ledgers are, ``<folder>/<partition or node id>/privacy.json``. A budget is
            as good as this folder: it has to outlive the app.
        budget: What all releases of this device may cost together.
        releases: How many releases the budget is for; sets the noise.
        record: Name of the ArrayRecord.
        array: Name of the matrix in it, [d, d], or packed already, [d(d+1)/2].
        clip: Largest norm of a feature z.
        adjacency: What two neighbouring data sets differ in: "replace-one", one sample replaced, or
            "add-remove", one sample more.
        nominal: The public constant R was divided by, for "add-remove", at least as large as the
            number of samples: ``FedSC`` refuses an R whose trace is above ``clip``^2. Otherwise R
            is divided by the reply's ``num-examples``, which is public.

    Raises:
        ConfigError: A number is out of range, or ``nominal`` and the adjacency do not fit.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        budget: Budget,
        releases: int,
        record: str = CORRELATION,
        array: str = CorrelationKey.PACKED,
        clip: float = 1.0,
        adjacency: Adjacency = "replace-one",
        nominal: int | None = None,
    ) -> None:
        if (nominal is None) != (adjacency == "replace-one"):
            raise ConfigError(
                "add-remove needs nominal, the public constant R is divided by; replace-one "
                f"divides by num-examples: got adjacency {adjacency} and nominal {nominal}"
            )
        self.folder, self.budget = Path(folder), budget
        self.noise_multiplier = noise_multiplier_for(budget.epsilon, budget.delta, releases)
        self.record, self.array = record, array
        self.clip, self.adjacency, self.nominal = clip, adjacency, nominal
        self._mechanism(1 if nominal is None else nominal)  # checks the numbers before any round

    def __call__(self, message: Message, context: Context, app: ClientAppCallable) -> Message:
        """Run the app and make its reply private.

        Raises:
            BudgetError: The budget is spent and the reply has no other arrays.
            ConfigError: The matrix is not what clipped features give, or ``num-examples`` is
                missing.
        """
        reply = app(message, context)
        if reply.has_error() or not isinstance(reply.content.get(self.record), ArrayRecord):
            return reply
        content = reply.content
        arrays = records.to_numpy(records.of_kind(content, ArrayRecord)[self.record])
        if self.array not in arrays:
            raise ConfigError(f"the ArrayRecord {self.record!r} has no array {self.array!r}")
        told = _metrics(content)
        counted = int(cast(int, told[NUM_EXAMPLES])) if self.nominal is None else self.nominal
        mechanism = self._mechanism(counted)
        client = int(cast(int, context.node_config.get(PARTITION_ID, context.node_id)))
        way_out = MatrixRelease(self.folder / str(client), client, self.budget, mechanism)
        if not way_out.affords():
            return self._withhold(reply, client)
        released = way_out.release(_unpacked(arrays.pop(self.array)))
        packed = svec(released).float().numpy()
        content[self.record] = records.from_numpy({**arrays, self.array: packed})
        for name, value in way_out.told.items():
            told[name] = value
        return reply

    def _mechanism(self, num_examples: int) -> GaussianMechanism:
        return GaussianMechanism(
            self.noise_multiplier, self.clip, num_examples, adjacency=self.adjacency, secure=True
        )

    def _withhold(self, reply: Message, client: int) -> Message:
        """The reply without R; an error if that is all it had."""
        text = f"client {client}: the privacy budget is spent, {self.record!r} stays here"
        del reply.content[self.record]
        if not records.of_kind(reply.content, ArrayRecord):
            raise BudgetError(text)
        log.warning(text)
        return reply


def _unpacked(matrix: np.ndarray) -> torch.Tensor:
    """The matrix [d, d] in float64, however it came."""
    tensor = torch.from_numpy(matrix.astype(np.float64))
    return smat(tensor) if tensor.ndim == 1 else tensor


def _metrics(content: RecordDict) -> MetricRecord:
    for record in records.of_kind(content, MetricRecord).values():
        if NUM_EXAMPLES in record:
            return record
    raise ConfigError(f"the reply has no metric {NUM_EXAMPLES!r}, which sets the noise")
