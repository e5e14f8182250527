import pytest

from nmoe_flower.errors import NMoEError
from nmoe_flower.tracking import TensorBoard

pytest.importorskip("tensorboard")


class Recorder:
    def __init__(self):
        self.calls = []

    def update(self, record):
        self.calls.append(("update", record["round"]))

    def message(self, text):
        self.calls.append(("message", text))

    def close(self):
        self.calls.append(("close",))


def record(number, **metrics):
    return {
        "stage": "extractor",
        "round": number,
        "rounds": 2,
        "metrics": metrics,
        "clients": [0, 1],
        "failures": [{"partition": 1, "reason": "NaN"}],
        "bytes_up": 30,
        "bytes_down": 12,
        "seconds": 0.5,
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_number_becomes_a_scalar_and_everything_is_passed_on(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    inner = Recorder()
    board = TensorBoard(tmp_path, inner)
    board.message("hello")
    board.update(record(1, loss=2.0, routing=[0.5, 0.5]))
    board.update(record(2, loss=1.0))
    board.close()
    assert inner.calls == [("message", "hello"), ("update", 1), ("update", 2), ("close",)]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "extractor/loss",
        "extractor/seconds",
        "extractor/bytes",
        "extractor/failures",
    }
    assert [(e.step, e.value) for e in events.Scalars("extractor/loss")] == [(1, 2.0), (2, 1.0)]
    assert events.Scalars("extractor/bytes")[0].value == 42  # 30 up and 12 down


def test_a_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(NMoEError, match=r"needs TensorBoard: .*\[tracking\]"):
        TensorBoard(tmp_path, Recorder())
