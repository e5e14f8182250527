"""What a run tells TensorBoard, MLflow and Weights & Biases, beside whatever it shows and writes.

A tracker is a small class with four methods, `Tracker`; those that come along have a row in
`nmoe_flower.catalogue.TRACKERS`. Each is called in a thread of its own, so that no run waits for
it, and whatever it raises ends the tracking, not the run.
"""

from nmoe_flower.tracking.choice import Track
from nmoe_flower.tracking.tracked import Tracked
from nmoe_flower.tracking.tracker import Outcome, TrackedRound, TrackedRun, Tracker

__all__ = ["Outcome", "Track", "Tracked", "TrackedRound", "TrackedRun", "Tracker"]
