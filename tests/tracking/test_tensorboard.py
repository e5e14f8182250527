import pytest

from nmoe_flower.results import RunFolder
from tests.tracking.conftest import FINAL, record
from tests.tracking.test_tracked import follow

pytest.importorskip("tensorboard")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_written_reads_back(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = record("extractor", 1, loss=2.0, routing=[0.5, 0.5])
    assert follow(folder, "tensorboard", rounds=[first], end=False) == ""
    assert follow(folder, "tensorboard", rounds=[first, record("extractor", 2, loss=1.0)]) == ""
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    rounds = {f"extractor/{name}" for name in ("loss", "seconds", "bytes", "failures")}
    assert set(events.Tags()["scalars"]) == rounds | FINAL.keys()
    assert [(e.step, e.value) for e in events.Scalars("extractor/loss")] == [(1, 2.0), (2, 1.0)]
    assert events.Scalars("extractor/bytes")[0].value == 42  # 30 up and 12 down
    for name, value in FINAL.items():
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(0, value)]
    (image,) = events.Images("figures/accuracy")
    assert (image.width, image.height) == (4, 3)
    texts = {
        name: events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("config", "provenance", "results")
    }
    assert '"data.tau": 0.5' in texts["config"]
    assert '"git.revision": "1f"' in texts["provenance"]
    assert "| control:fedavg | local | 0.5000 | 0.6250 |" in texts["results"]
