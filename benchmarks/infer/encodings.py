"""What the encodings of latents cost: bytes per sample, and accuracy on a finished run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmoe_flower.files import load_arrays
from nmoe_flower.inference import Bundle, decode_tensor, encode_tensor
from nmoe_flower.inference.protocol import ENCODINGS, Encoding, peer_pb2
from nmoe_flower.metrics import accuracy
from nmoe_flower.models import LocalExperts, NMoE

__all__ = ["EncodingCost", "bytes_per_sample", "encoding_costs"]


@dataclass(frozen=True)
class EncodingCost:
    """One encoding on one test split of all clients.

    Attributes:
        encoding: Encoding of the latents on the wire; the gate sees them as they were.
        split: Which test, ``local`` or ``iid``.
        samples: Samples of all clients.
        accuracy: Per client, then averaged.
        loss: Accuracy of float32 less this one.
        changed: Share of the samples whose predicted class is another than with float32.
        largest_error: Largest error of a logit.
    """

    encoding: str
    split: str
    samples: int
    accuracy: float
    loss: float
    changed: float
    largest_error: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def bytes_per_sample(latent_dim: int, encoding: Encoding, *, rows: int = 64) -> float:
    """Bytes of a whole request of ``rows`` latents, per latent; without HTTP/2 and TLS.

    >>> bytes_per_sample(64, "float32")  # 4 x 64, and 68 bytes of other fields for 64 rows
    257.0625
    """
    request = peer_pb2.PredictRequest(
        request_id="0" * 16,
        extractor_version="0" * 16,
        expert_version="0" * 16,
        latents=encode_tensor(np.ones((rows, latent_dim)), encoding),
    )
    return float(request.ByteSize()) / rows


def encoding_costs(run_folder: Path, bundles: Sequence[Bundle]) -> list[EncodingCost]:
    """Answer every client's test latents by the mixture, with latents as each encoding has them.

    Args:
        run_folder: A finished run; its ``clients/<i>/latents.safetensors`` are read.
        bundles: The run's, in client order.
    """
    experts = LocalExperts([bundle.expert() for bundle in bundles])
    stores = [
        load_arrays(run_folder / "clients" / str(bundle.partition) / "latents.safetensors")
        for bundle in bundles
    ]
    costs = []
    for split in ("local", "iid"):
        exact: list[tuple[Tensor, Tensor]] = []
        for encoding in ENCODINGS:
            found = [
                _answers(bundle, experts, store[split], encoding)
                for bundle, store in zip(bundles, stores, strict=True)
            ]
            exact = exact or found
            right = _mean_accuracy(found, stores, split)
            costs.append(
                EncodingCost(
                    encoding,
                    split,
                    samples=sum(len(probabilities) for probabilities, _ in found),
                    accuracy=right,
                    loss=_mean_accuracy(exact, stores, split) - right,
                    changed=_changed(exact, found),
                    largest_error=max(
                        float((a[1] - b[1]).abs().max()) for a, b in zip(exact, found, strict=True)
                    ),
                )
            )
    return costs


@torch.inference_mode()
def _answers(
    bundle: Bundle, experts: LocalExperts, split: np.ndarray[Any, Any], encoding: Encoding
) -> tuple[Tensor, Tensor]:
    """Probabilities [N, C] of the mixture and logits [N, K, C] of the chosen experts."""
    asked: list[Tensor] = []

    def over_the_wire(latents: Tensor, expert_ids: Tensor) -> Tensor:
        tensor = encode_tensor(latents.numpy(), encoding)
        received = decode_tensor(tensor, max_rows=len(latents), columns=bundle.latent_dim)
        logits: Tensor = experts(torch.from_numpy(received.copy()), expert_ids)
        asked.append(logits)
        return logits

    mixture = NMoE(torch.nn.Identity(), bundle.gate(), over_the_wire)
    prediction = mixture.mixture(torch.from_numpy(split.copy()))
    return prediction.probabilities, asked[0]


def _mean_accuracy(
    found: Sequence[tuple[Tensor, Tensor]], stores: Sequence[dict[str, Any]], split: str
) -> float:
    return float(
        np.mean(
            [
                accuracy(probabilities.numpy(), store[f"{split}-labels"])
                for (probabilities, _), store in zip(found, stores, strict=True)
            ]
        )
    )


def _changed(
    exact: Sequence[tuple[Tensor, Tensor]], found: Sequence[tuple[Tensor, Tensor]]
) -> float:
    pairs = [(a[0].argmax(dim=1), b[0].argmax(dim=1)) for a, b in zip(exact, found, strict=True)]
    different = sum(int((a != b).sum()) for a, b in pairs)
    return different / sum(len(a) for a, _ in pairs)
