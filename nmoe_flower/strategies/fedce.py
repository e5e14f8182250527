"""FedCE: federated averaging of a classifier that is later split (Networked MoE, section III-A.1).

Gao et al. 2025, "Towards Efficient Federated Learning of Networked Mixture-of-Experts for Mobile
Edge Computing", arXiv:2511.01743, Eq. 2.
"""

from nmoe_flower.strategies.stepped import SteppedFedAvg

__all__ = ["FedCE"]


class FedCE(SteppedFedAvg):
    """FedAvg of a classifier, with a server step of its own.

    The client trains the classifier it is sent on its own images with cross entropy and returns
    its weights; it finds this round's rate under ``"learning-rate"``. Sending only the extractor's
    weights, with a head that stays at home, gives the private heads of Eq. 2.

    Args:
        **options: What ``SteppedFedAvg``, ``StreamingFedAvg`` and FedAvg take.
    """

    purpose = "extractor"
