"""Every key of the configuration, with values it must not have: refused before anything is written.

A new key needs a row here; what its type alone rules out is tried beside the row.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from nmoe_flower import cli
from nmoe_flower import running as run_module
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError

FEW = ["data.num-clients=4", "data.train-per-client=60", "data.test-per-client=10"]
FEDSC = "extractor.method=fedsc"
GIVEN = "extractor.method=pretrained extractor.backbone=efficientnet-lite0"
ADAPTED = (
    "extractor.backbone=efficientnet-lite0 extractor.resolution=32 extractor.cut=6:1 "
    "extractor.adapter-rank=2 extractor.adapter-blocks=2 "
    "data.crop-padding=0"
)
ALIGNMENT = "run.system=aligned"
LANGUAGE = (
    "run.system=language data.kind=text data.scheme=natural extractor.method=pretrained "
    "extractor.backbone=small-lm "
    "gate.methods=unigram data.dataset=./texts"
)
PRIVATE = f"{FEDSC} privacy.enabled=true"
HUGE = "99999999999999999999"
LONG = "9" * 5000
BELOW_0, BELOW_1, NOT_ABOVE_0 = ["-1", "-0.001"], ["0", "-1"], ["0", "-1"]
SHARE_BELOW_1 = ["1", "1.5", "-0.1"]  # 0 is allowed
SHARE_ABOVE_0 = ["0", "1.01", "-0.1"]  # 1 is allowed
SHARE = ["1.01", "-0.1"]
SWITCH = ["2", "perhaps", "-1"]
CHOICE = ["", "nonsense", "NONE"]
NUL = ["a\0b", "\ud800"]

# key -> values outside its range; a value after "|" is what stands beside it.
ROWS: dict[str, list[str]] = {
    "data.dataset": ["", *NUL, "./no/such/folder"],
    "data.cache-dir": NUL,
    "data.image-column": NUL,
    "data.label-column": NUL,
    "data.train-split": ["", *NUL],
    "data.test-split": [*NUL, "train"],
    "data.kind": [*CHOICE, "features", "text"],
    "data.feature-columns": ["a", "a,b", "a,a"],
    "data.feature-means": ["1"],
    "data.feature-deviations": ["1", "0", "-1"],
    "data.size": ["0", "-8", "8x", "8x8x8", "9999", "x8", "8.5"],
    "data.fit": CHOICE,
    "data.partition-column": NUL,
    "data.num-clients": ["1", "0", "-3", "2000"],
    "data.without": ["-1", "4|data.num-clients=3", "1,1"],
    "data.scheme": [*CHOICE, "natural"],
    "data.domains": [
        "upside-down", "clean,clean", "clean,rot90", "clean|data.scheme=natural",
        "clean,no_such:thing|data.scheme=natural data.num-clients=2",
    ],
    "data.renamings": ["-1", "2", "9|data.scheme=natural"],
    "data.tau": [*NOT_ABOVE_0, "30"],
    "data.alpha": NOT_ABOVE_0,
    "data.classes-per-client": [*BELOW_1, "11|data.scheme=pathological"],
    "data.train-per-client": ["-1", "9999"],
    "data.test-per-client": ["-1", "9999"],
    "data.validation-per-client": ["-1", "9999", "40|data.train-per-client=0 data.num-clients=40"],
    "data.crop-padding": ["-1", "8", "4294967295"],
    "data.flip": SWITCH,
    "data.cutout": ["-1", "9", "4294967295"],
    "extractor.method": [*CHOICE, "pretrained"],
    "extractor.start": [*NUL, "nowhere", f"here|{GIVEN}"],
    "extractor.reading": CHOICE,
    "extractor.backbone": [
        *CHOICE, "narrow", "efficientnet-lite0", "small-lm", f"digits|{GIVEN}",
    ],
    "extractor.weights": [*NUL, f"nowhere|{GIVEN}", "nowhere"],
    "extractor.resolution": ["-1", "4097", "128", f"31|{GIVEN}"],
    "extractor.cut": ["4", "4:0", "4:65", ":2", "4:2,4:2", "4:2", f"9:1|{GIVEN}"],
    "extractor.adapter-rank": ["-1", "65537", "2", f"2|{GIVEN}", f"193|{ADAPTED}"],
    "extractor.adapter-blocks": ["0", "3", f"17|{ADAPTED}"],
    "extractor.adapter-scale": [*NOT_ABOVE_0, "3"],
    "extractor.norm": [
        *CHOICE, f"batch|{GIVEN}", "batch|extractor.batch-size=1 extractor.stem=pool",
    ],
    "extractor.widths": ["8", "12,16", "8,8,8", "0,8", "-8,8", "8,nan", "8,2000000"],
    "extractor.stem": ["nonsense", "cosine|extractor.backbone=resnet18"],
    "extractor.pool": CHOICE,
    "extractor.mirror": [*SWITCH, "true|extractor.backbone=mlp"],
    "extractor.head": [*CHOICE, "linear"],
    "extractor.rounds": ["-1"],
    "extractor.local-steps": ["-1", "0"],
    "extractor.local-epochs": ["-1", "1"],
    "extractor.batch-size": [*BELOW_1, f"1|{FEDSC}"],
    "extractor.learning-rate": NOT_ABOVE_0,
    "extractor.schedule": CHOICE,
    "extractor.warmup": SHARE_BELOW_1,
    "extractor.momentum": SHARE_BELOW_1,
    "extractor.momentum-at": [*CHOICE, "client|extractor.server-optimizer=adamw"],
    "extractor.server-optimizer": CHOICE,
    "extractor.local-learning-rate": BELOW_0,
    "extractor.server-learning-rate": NOT_ABOVE_0,
    "extractor.weight-decay": BELOW_0,
    "extractor.label-smoothing": SHARE_BELOW_1,
    "extractor.logit-adjustment": [*BELOW_0, "1|privacy.weights=true"],
    "extractor.dropout": [*SHARE_BELOW_1, "0.5"],
    "extractor.max-grad-norm": [*BELOW_0, "1|privacy.weights=true"],
    "extractor.ema": SHARE_BELOW_1,
    "extractor.fraction-train": SHARE_ABOVE_0,
    "contrast.weight": NOT_ABOVE_0,
    "contrast.unbiased": SWITCH,
    "contrast.running": SHARE_BELOW_1,
    "contrast.dim": ["1", "0", "2049"],
    "contrast.hidden": [*BELOW_1, f"4000000000|{FEDSC}"],
    "contrast.projector-norm": CHOICE,
    "contrast.exchange": CHOICE,
    "contrast.source": [*CHOICE, f"batches|{PRIVATE}"],
    "contrast.share": [*CHOICE, f"own|{FEDSC} privacy.weights=true contrast.projector-norm=layer"],
    "contrast.first": ["-1", f"121|{FEDSC}"],
    "contrast.refresh": ["-1"],
    "contrast.view-size": ["-1", "1025", f"3|{FEDSC}"],
    "contrast.crop": ["0", "0.0009", "1.01"],
    "contrast.jitter": SHARE,
    "contrast.hue": ["0.51", "-0.1"],
    "contrast.grey": SHARE,
    "contrast.noise": [*BELOW_0, "101"],
    "contrast.mask": SHARE_BELOW_1,
    "contrast.probe": CHOICE,
    "contrast.probe-images": ["9", "-1"],
    "privacy.enabled": [*SWITCH, "true"],
    "privacy.epsilon": NOT_ABOVE_0,
    "privacy.delta": ["0", "1", "-0.1", f"0.5|{PRIVATE}"],
    "privacy.releases": BELOW_1,
    "privacy.adjacency": [*CHOICE, f"add-remove|{PRIVATE}"],
    "privacy.secure": SWITCH,
    "privacy.shrink": SWITCH,
    "privacy.tokens": [*SWITCH, "true"],
    "privacy.tokens-clip": NOT_ABOVE_0,
    "privacy.weights": [*SWITCH, "true|extractor.norm=batch"],
    "privacy.weights-epsilon": NOT_ABOVE_0,
    "privacy.weights-clip": NOT_ABOVE_0,
    "privacy.weights-noise": BELOW_0,
    "head.method": [*CHOICE, f"sums|{FEDSC} head.rounds=3", f"sums|{ALIGNMENT}", "sums"],
    "head.components": ["-1", "5000|head.method=sums expert.hidden=", "8"],
    "head.ridge": ["-0.1", "1.1"],
    "head.sharpness": NOT_ABOVE_0,
    "head.standardise": [*SWITCH, "true"],
    "head.start": [*CHOICE, "ridge"],
    "head.rounds": ["-1", "3"],
    "head.batch-size": BELOW_1,
    "head.learning-rate": NOT_ABOVE_0,
    "head.weight-decay": BELOW_0,
    "expert.kind": [*CHOICE, "ffn", f"ffn|{LANGUAGE} adapter.targets=up"],
    "expert.init": [*CHOICE, f"head|{FEDSC}"],
    "expert.hidden": ["0", "-8", "8,0", "8,1.5", "2000000", "1048576,1048576", "8,nan"],
    "expert.epochs": ["-1"],
    "expert.batch-size": BELOW_1,
    "expert.learning-rate": NOT_ABOVE_0,
    "expert.weight-decay": BELOW_0,
    "expert.label-smoothing": SHARE_BELOW_1,
    "expert.logit-adjustment": BELOW_0,
    "expert.sharing": [*CHOICE, "none"],
    "text.tokenizer": [*NUL, f"./no/such.json|{LANGUAGE}"],
    "text.window": [*BELOW_1, "1", "65537"],
    "text.stride": ["-1", "129"],
    "text.packing": CHOICE,
    "text.prefix": [*BELOW_1, "128"],
    "text.chunk": BELOW_1,
    "text.recent": ["-1", "65537"],
    "text.candidates": ["-1"],
    "text.unit": CHOICE,
    "text.column": NUL,
    "text.domains": ["a,a"],
    "text.too-long": CHOICE,
    "text.test-share": ["0", "1", "-0.1"],
    "text.near-duplicates": SHARE,
    "text.mixed": SHARE_BELOW_1,
    "gate.methods": [
        "", "magic", "local,local", "domain", "unigram", f"random|{LANGUAGE}",
    ],
    "gate.home-bias": [*BELOW_0, "1e7"],
    "gate.top-k": [*BELOW_1, "5"],
    "gate.hidden": ["-1", "4000000000"],
    "gate.noisy": SWITCH,
    "gate.rounds": BELOW_1,
    "gate.local-steps": BELOW_1,
    "gate.batch-size": BELOW_1,
    "gate.learning-rate": NOT_ABOVE_0,
    "gate.optimizer": CHOICE,
    "gate.fraction-train": SHARE_ABOVE_0,
    "gate.objective": CHOICE,
    "gate.temperature": NOT_ABOVE_0,
    "gate.balance": BELOW_0,
    "gate.normalise-gradient": SWITCH,
    "gate.holdout": ["0", "1", "-0.1"],
    "gate.folds": ["-1", "1"],
    "gate.shortlist": ["-1", "1.5", "some", "2|gate.top-k=3 data.num-clients=4"],
    "gate.form": [
        *CHOICE, "linear|gate.hidden=4", "mlp", "metric|gate.hidden=4", "metric|gate.noisy=true",
        "metric|gate.start=zero", f"metric|{ALIGNMENT}",
    ],
    "gate.embedding": BELOW_1,
    "gate.start": [
        *CHOICE, "prototypes|gate.hidden=4",
        "prototypes|expert.sharing=none gate.methods=local", f"prototypes|{ALIGNMENT}",
    ],
    "gate.keep": SHARE_ABOVE_0,
    "gate.rolling": CHOICE,
    "gate.cycles": BELOW_1,
    "gate.distribution": [
        "-1,2,0,0", "0,0,0,0", "1,1", "1,1,1,1,1", "nan,1,1,1", "inf,0,0,0", "1e301,1,1,1",
        "1,0,0,0|gate.top-k=2", "one,two,three,four",
    ],
    "gate.prior": CHOICE,
    "adapter.blocks": CHOICE,
    "adapter.targets": ["a,a"],
    "adapter.rank": [*BELOW_1, "70000"],
    "adapter.ranks": ["0,1,1,1", f"1,2|{LANGUAGE}"],
    "adapter.scale": NOT_ABOVE_0,
    "adapter.bias": SWITCH,
    "adapter.start": [*CHOICE, "fedavg-exact", f"fedavg|{LANGUAGE} adapter.ranks=1,2,3,4"],
    "adapter.steps": [*BELOW_1, "7"],
    "adapter.averaged-steps": ["-1", f"7|{LANGUAGE}"],
    "adapter.batch-size": BELOW_1,
    "adapter.learning-rates": ["", "0", "-1,0.1", "0.1,0.1", f"0.1,0.2|{LANGUAGE}"],
    "adapter.weight-decay": BELOW_0,
    "adapter.controls": ["magic", "soup,soup"],
    "adapter.local-steps": [*BELOW_1, "7"],
    "adapter.moments": CHOICE,
    "adapter.averaged-learning-rates": ["0", "-1,0.1", "0.1,0.1", f"0.1,0.2|{LANGUAGE}"],
    "adapter.times": [*BELOW_1, "2000"],
    "alignment.policy": CHOICE,
    "query.send": CHOICE,
    "alignment.experts": ["-1", f"4000000|{ALIGNMENT}"],
    "alignment.capacity": ["-1", "0", "0,0", "1,-1", ""],
    "alignment.rounds": BELOW_1,
    "alignment.local-steps": BELOW_1,
    "alignment.batch-size": [
        *BELOW_1, f"1|{ALIGNMENT} extractor.norm=batch extractor.stem=pool",
    ],
    "alignment.learning-rate": NOT_ABOVE_0,
    "alignment.momentum": SHARE_BELOW_1,
    "alignment.weight-decay": BELOW_0,
    "alignment.fraction-train": SHARE_ABOVE_0,
    "alignment.extractor": CHOICE,
    "alignment.filters": [*BELOW_1, f"4000000000|{ALIGNMENT} alignment.extractor=filters"],
    "alignment.filter-size": ["1", "-1", f"8|{ALIGNMENT} alignment.extractor=filters"],
    "alignment.filter-stride": [
        *BELOW_1, f"4294967295|{ALIGNMENT} alignment.extractor=filters",
    ],
    "alignment.gate": [*CHOICE, "closed-form"],
    "alignment.gate-learning-rate": BELOW_0,
    "alignment.gate-server-rate": [*BELOW_0, "0.1|alignment.gate=local"],
    "alignment.gate-decay": SHARE,
    "alignment.gate-ridge": NOT_ABOVE_0,
    "alignment.anchor": BELOW_0,
    "alignment.balance": BELOW_0,
    "alignment.holdout": ["0", "1", "-0.1"],
    "alignment.loss-weight": SHARE,
    "alignment.rate": SHARE,
    "alignment.decay": SHARE,
    "alignment.prior": SHARE,
    "alignment.centred": SWITCH,
    "alignment.exploration": BELOW_0,
    "alignment.usage-decay": SHARE_BELOW_1,
    "alignment.fitness-weight": BELOW_0,
    "alignment.usage-weight": BELOW_0,
    "alignment.deficit-weight": BELOW_0,
    "alignment.scale": [*CHOICE, "Z"],
    "alignment.lo": ["-2", "0|alignment.policy=random", f"3|{ALIGNMENT}"],
    "alignment.hi": ["-2", "0|alignment.lo=1", f"0|{ALIGNMENT}"],
    "alignment.devices": ["toaster", "phone,toaster"],
    "alignment.trace": [*NUL, f"missing.json|{ALIGNMENT}", f".|{ALIGNMENT}"],
    "alignment.estimate-capacity": [*SWITCH, "true"],
    "alignment.deadline": BELOW_0,
    "alignment.top-k": [*BELOW_1, f"5|{ALIGNMENT}"],
    "alignment.evaluate-every": BELOW_1,
    "baseline.experts": [*BELOW_1, "1025"],
    "baseline.size": CHOICE,
    "baseline.trunk": [*CHOICE, f"stage-1|run.system=fedem {GIVEN}"],
    "baseline.held": [
        *BELOW_1, "4|run.system=flex-moe", "1|run.system=fedmoe",
        "1|run.system=fedjets baseline.anchors=false",
    ],
    "baseline.anchors": SWITCH,
    "baseline.neighbours": ["-1"],
    "baseline.lo": ["-2", "2|run.system=fedmoe"],
    "baseline.hi": ["-2", "2|run.system=fedem"],
    "baseline.rounds": BELOW_1,
    "baseline.local-steps": BELOW_1,
    "baseline.batch-size": BELOW_1,
    "baseline.learning-rate": NOT_ABOVE_0,
    "baseline.momentum": SHARE_BELOW_1,
    "baseline.weight-decay": BELOW_0,
    "baseline.fraction-train": SHARE_ABOVE_0,
    "baseline.proximal": BELOW_0,
    "baseline.tuning-steps": BELOW_1,
    "baseline.tuning-learning-rate": NOT_ABOVE_0,
    "baseline.tuning-momentum": SHARE_BELOW_1,
    "baseline.tuning-batch-size": ["-1"],
    "baseline.evaluate-every": ["-1"],
    "engine.stack": ["-1", "4097", "1.5"],
    "run.name": ["", "../up", "a/b", "-x", ".", "a" * 200, "a b"],
    "run.system": [*CHOICE, "language"],
    "run.out": NUL,
    "run.seed": ["-1"],
    "run.device": ["", "banana", "cuda", "cuda:7", "cuda:-1", "mps", "CPU"],
    "run.precision": [*CHOICE, "float16"],
    "run.controls": ["magic", "fedavg,fedavg"],
    "run.control-epochs": ["-1"],
    "run.control-learning-rate": NOT_ABOVE_0,
    "run.evaluate-every": ["-1"],
    "run.checkpoint-every": ["-1"],
    "run.keep-checkpoints": BELOW_1,
    "run.min-replies": [*BELOW_1, "5"],
    "run.wait-for-all": SWITCH,
    "run.connect-timeout": [*NOT_ABOVE_0, "1e300"],
    "run.round-timeout": [*NOT_ABOVE_0, "1e300"],
}  # fmt: skip


def fields() -> dict[str, Any]:
    """The type of every key."""
    return {
        f"{section}.{field.alias}": field.annotation
        for section, table in Config.model_fields.items()
        for field in table.annotation.model_fields.values()  # type: ignore[union-attr]
    }


def of_the_wrong_type(kind: Any) -> list[str]:
    """What the type of a key rules out, whatever its range."""
    if get_origin(kind) is Literal or kind is str:
        return []
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return of_the_wrong_type(inner) if inner in (int, float) else ["true", "1.5"]
    return {
        bool: ["nan", "maybe"],
        int: ["nan", "inf", "1.5", HUGE, f"-{HUGE}", LONG, "true", "three", ""],
        float: ["nan", "inf", "-inf", "1e999", "true", "three", ""],
    }[kind]


def cases() -> Iterator[Any]:
    for key, kind in fields().items():
        wrong = [] if get_origin(kind) is tuple and "" in ROWS[key] else of_the_wrong_type(kind)
        for row in dict.fromkeys([*ROWS[key], *wrong]):
            value, _, beside = row.partition("|")
            if value == "" and get_origin(kind) is tuple and "" not in ROWS[key]:
                continue  # an empty list
            yield pytest.param(key, value, beside.split(), id=f"{key}={row[:40]!r}")


def test_every_key_has_a_row() -> None:
    assert ROWS.keys() == fields().keys()
    assert all(ROWS.values())


def not_refused(*_: object) -> None:
    raise AssertionError("the run would have begun")


@pytest.mark.parametrize(("key", "value", "beside"), list(cases()))
def test_a_value_outside_the_range_is_refused_before_anything_is_written(
    key: str,
    value: str,
    beside: list[str],
    tmp_path: Path,
    warm_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    monkeypatch.setattr(run_module, "_train", not_refused)
    said = ["run", "--no-figures", "--workers", "0", "--set", *FEW, *beside, f"{key}={value}"]
    assert cli.main(said) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.startswith("nmoe: error: ")
    section, _, name = key.partition(".")
    assert section in told
    assert name in told
    assert any(part in told for part in parts_as_shown(value))
    assert not list(tmp_path.iterdir())


def parts_as_shown(value: str) -> Iterator[str]:
    """What of a value an error repeats: the beginning of it or of an entry, or it as a number."""
    for part in (value, *value.split(",")):
        yield part[:10].encode("unicode_escape").decode()
        with contextlib.suppress(ValueError):
            yield str(float(part))
    yield value.title()  # of a switch
    if value == "true":
        yield "privacy."  # what the switch cannot go with


def refusal(overrides: list[str]) -> str:
    try:
        Config.load(None, overrides)
    except ConfigError as error:
        return str(error)
    return ""


def test_the_same_settings_without_the_value_are_allowed() -> None:
    """Otherwise the rows above could be refused for what stands beside them."""
    assert Config.load(None, FEW)
    for row in itertools.chain.from_iterable(ROWS.values()):
        beside = row.partition("|")[2]
        assert refusal([*FEW, *beside.split()]) == "", row
