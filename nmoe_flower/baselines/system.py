"""What a published system is: its server half, what travels, and its client half.

No torch is loaded here, nor at the top of a system's file: servers aggregate with NumPy. The client
half works on a `Member`, in ``member.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from nmoe_flower.baselines.partial import PartialExperts
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.config import Config
from nmoe_flower.strategies import StreamingOptions

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.baselines.network import ExpertNetwork
    from nmoe_flower.data import Portion

__all__ = ["Answers", "Baseline"]

Answers = Mapping[str, "Callable[[Portion], Tensor]"]
"""By name: what answers the images of a test with probabilities, [N, C]."""


class Baseline:
    """One system: FedAvg, unless a subclass says otherwise.

    Attributes:
        name: The value of ``run.system``.
        gated: The network has a gate, with a row ``gate.<k>.*`` for each expert.
        tuned: Which of its answers stand on what is tuned at home at last.
    """

    name = "fedavg"
    gated = False
    tuned: frozenset[str] = frozenset()

    def experts(self, config: Config) -> int:
        """E, how many experts there are."""
        return config.baseline.experts if BASELINES[self.name].several else 1

    def strategy(self, config: Config, **options: Unpack[StreamingOptions]) -> PartialExperts:
        """The server half: by samples, unless a subclass says otherwise."""
        return PartialExperts(self.experts(config), masses=False, **options)

    def network(
        self,
        config: Config,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        latent_dim: int = 0,
    ) -> "ExpertNetwork":
        """The network of a client at its initial weights, the same on every client.

        Args:
            config: The run's configuration.
            image_shape: Channels, height, width.
            num_classes: How many classes there are, C.
            latent_dim: D of the latents that it reads in place of images; 0: it reads images.
        """
        build = found("nmoe_flower.baselines.network:ExpertNetwork")
        network: ExpertNetwork = build(
            config,
            image_shape,
            num_classes,
            experts=self.experts(config),
            gated=self.gated,
            latent_dim=latent_dim,
        )
        return network

    def bodies(self, network: "ExpertNetwork") -> "Sequence[Module]":
        """What begins at the extractor of stage 1, if ``baseline.trunk`` says so.

        Args:
            network: As `network` gives it.
        """
        return network.bodies

    def travels(self, name: str) -> bool:
        """Whether an array of the network leaves the clients; what does not is private."""
        return True

    def server_copies(self, config: Config) -> int:
        """How many of each expert the server holds at a time, of all clients together."""
        return 1

    def server_extra(self, config: Config) -> int:
        """Bytes that the server needs in a round beside arrays of the network."""
        return 0

    def too_high(self, answer: str = "") -> str:
        """What to lower where numbers are not finite, as the end of an error.

        Args:
            answer: Who answered with them; empty: they are of a round.

        >>> Baseline().too_high()
        'lower baseline.learning-rate'
        """
        if answer in self.tuned:
            return "lower baseline.tuning-learning-rate"
        pulled = "proximal" in BASELINES[self.name].reads
        return "lower baseline.learning-rate" + " or baseline.proximal" * pulled

    def at_home(self, network: "ExpertNetwork", image_shape: tuple[int, int, int]) -> int:
        """How many numbers a client has beside what it is sent: private, or trained for itself.

        Args:
            network: As `network` gives it; its arrays may be without numbers.
            image_shape: Channels, height, width.
        """
        state = network.state_dict()
        return sum(value.numel() for name, value in state.items() if not self.travels(name))

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        """The client's part of a round: trains ``member.network``; returns further metrics."""
        return {"loss": member.steps(member.network)}

    def answers(self, member: "Member", *, final: bool) -> Answers:
        """Who answers a test: first the system itself; after training, further ones.

        Args:
            member: The client, its network as received.
            final: Training is over.
        """
        return {self.name: member.single}
