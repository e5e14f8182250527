"""Federated learning of Networked Mixture-of-Experts on Flower."""

__version__ = "0.1.0"
