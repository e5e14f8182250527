"""How fast engines, assignment, FedSC and peers are, each beside a yardstick; not installed.

From a checkout: ``python -m benchmarks.rounds``; ``nmoe bench`` lists all.
"""
