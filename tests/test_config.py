import contextlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nmoe_flower.catalogue import GATES
from nmoe_flower.config import Config
from nmoe_flower.data import Views
from nmoe_flower.engine import write_app
from nmoe_flower.errors import ConfigError

ROOT = Path(__file__).parents[1]
UNUSUAL = Config.parse(
    {
        "data": {"num-clients": 3, "tau": 0.2, "flip": True},
        "extractor.widths": [8, 16],
        "extractor.local-steps": 0,
        "extractor.local-epochs": 2,
        "gate": {"methods": ["random", "oracle"], "distribution": [0.5, 0.25, 0.25]},
        "run.controls": "",
        "run.out": 'a "quoted" \\ folder é',
    }
)


# --- one key, two spellings ---


@pytest.mark.parametrize("spelling", ["num_clients", "num-clients"])
@pytest.mark.parametrize("line", ["num_clients", "num-clients"])
def test_the_command_line_goes_before_the_recipe_in_either_spelling(
    spelling: str, line: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[data]\n{spelling} = 3\n")
    assert Config.load(recipe, [f"data.{line}=4"]).data.num_clients == 4
    assert Config.load(None, [f"data.{spelling}=3", f"data.{line}=4"]).data.num_clients == 4


@pytest.mark.parametrize(
    "text",
    ["[data]\nnum_clients = 3\nnum-clients = 4\n", '"data.num-clients" = 3\ndata.num_clients = 4'],
)
def test_a_recipe_with_two_answers_is_refused(text: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    with pytest.raises(
        ConfigError, match=r"recipe\.toml: the key .*num.clients stands there twice"
    ):
        Config.load(recipe)


@pytest.mark.parametrize("value", ["{tau=0.5}", "3", "[1]", "x"])
def test_a_section_is_no_value(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^data: is a section; set its keys, as in data\.KEY=VALUE"
    ):
        Config.load(None, [f"data={value}"])


# --- round trips ---


@pytest.mark.parametrize("config", [Config(), UNUSUAL], ids=["default", "unusual"])
def test_every_form_reads_back_to_the_same(config: Config, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(config.to_toml(), encoding="utf-8")
    assert Config.parse(config.flat()) == config
    assert Config.load(recipe) == config
    assert Config.parse(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("config", [Config(), UNUSUAL], ids=["default", "unusual"])
def test_the_words_of_a_command_line_read_back_to_the_same(config: Config) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in config.flat().items()]
    assert Config.load(overrides=words) == config


@pytest.mark.parametrize(
    "name",
    [
        "photos \U0001f4f7", "\U00020bb7", "a\x7fb", 'say "hi"', "back\\slash", "line\nbreak",
        "\u2028", "\ufeffmarked", "tab\t", "a = 1 # no comment", "'''", "\x01\x1f", "C:\\new",
    ],
)  # fmt: skip
def test_a_path_of_any_characters_reads_back_as_it_was(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "config.toml"
    config = Config.parse({"data.dataset": name})
    recipe.write_text(config.to_toml(), encoding="utf-8")
    assert Config.load(recipe).data.dataset == name
    app = tomllib.loads((write_app(tmp_path, config.flat()) / "pyproject.toml").read_text("utf-8"))
    assert app["tool"]["flwr"]["app"]["config"]["data"]["dataset"] == name


def test_an_app_of_ones_own_has_keys_without_a_table(tmp_path: Path) -> None:
    told = (write_app(tmp_path, {"kind": "tiny", "data.tau": 0.5}) / "pyproject.toml").read_text()
    config = tomllib.loads(told)["tool"]["flwr"]["app"]["config"]
    assert config == {"kind": "tiny", "data": {"tau": 0.5}}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_text_reads_back_as_it_was(name: str) -> None:
    config = Config.parse({"data.dataset": name, "run.out": name})
    assert Config.parse(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("2024", "2024"), ("007", "007"), ("1e3", "1e3"), ("0x10", "0x10"), ("true", "true"),
        ("[a]", "[a]"), ("2024-01-01", "2024-01-01"), ("nan", "nan"), ("9" * 5000, "9" * 5000),
        ("[" * 5000, "[" * 5000), ('"2024"', "2024"), ("'a b'", "a b"), ("a=b", "a=b"),
        ("1\nx = 2", "1\nx = 2"),
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_typed_for_a_text_is_the_text(typed: str, name: str) -> None:
    assert Config.load(overrides=[f"data.dataset={typed}"]).data.dataset == name
    assert Config.load(overrides=[f"data.cache_dir={typed}"]).data.cache_dir == name


def test_a_number_is_text_where_no_digit_is_lost(tmp_path: Path) -> None:
    """Flower's command line and TOML know numbers; of 1.50 or 1e3 nobody knows how it was typed."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[data]\ndataset = 2024\n", encoding="utf-8")
    assert Config.load(recipe).data.dataset == "2024"
    with pytest.raises(ConfigError, match=r"dataset: text is wanted, got the number 1\.5: write"):
        Config.parse({"data.dataset": 1.5})


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(b"\xef\xbb\xbf[data]\r\nnum-clients = 4\r\n")
    assert Config.load(recipe).data.num_clients == 4


def test_the_flat_form_is_what_flower_takes() -> None:
    flat = UNUSUAL.flat()
    assert {type(value) for value in flat.values()} <= {bool, int, float, str}
    assert flat["gate.distribution"] == "0.5,0.25,0.25"
    assert flat["extractor.widths"] == "8,16"
    assert flat["run.controls"] == ""
    assert flat["data.flip"] is True


def test_one_number_is_a_list_of_one() -> None:
    """``--set expert.hidden=64`` is read as TOML, so a number arrives."""
    assert Config.load(overrides=["expert.hidden=64"]).expert.hidden == (64,)
    assert Config.load(overrides=["expert.hidden=[64, 32]"]).expert.hidden == (64, 32)
    assert Config.load(overrides=["expert.hidden=64,32"]).expert.hidden == (64, 32)
    assert Config.load(overrides=["gate.methods=local, random"]).gate.methods == ("local", "random")


def test_flower_is_told_the_defaults() -> None:
    """``flwr run`` can only override keys that are listed in pyproject.toml."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    told = pyproject["tool"]["flwr"]["app"]["config"]
    flat = {
        f"{section}.{key}": value
        for section, values in told.items()
        for key, value in values.items()
    }
    assert flat == Config().flat()
    assert {key: type(value) for key, value in flat.items()} == {
        key: type(value) for key, value in Config().flat().items()
    }


def test_later_words_win_and_tables_merge(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[gate]\ntop-k = 2\nrounds = 7\n[run]\nname = "x"\n', encoding="utf-8")
    config = Config.load(recipe, ["gate.top-k=3", "gate.top-k = 4", "data.dataset=a=b"])
    assert (config.gate.top_k, config.gate.rounds, config.data.dataset) == (4, 7, "a=b")


def test_frozen_and_complete_defaults() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.gate.top_k = 2  # type: ignore[misc]
    assert config.gate.methods == tuple(name for name, gate in GATES.items() if gate.usual)
    assert config == Config.parse({})
    assert hash(config) == hash(Config())


@given(st.dictionaries(st.sampled_from(sorted(Config().flat())), st.none() | st.text(max_size=5)))
def test_any_values_are_read_or_refused(values: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        config = Config.parse(values)
        assert Config.parse(config.flat()) == config


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Config().run.folder(17) == tmp_path / "nmoe-runs" / "nmoe-17"
    config = Config.parse({"run.out": "~/there", "run.name": "x"})
    assert config.run.folder(17) == tmp_path / "there" / "x"


# --- bad input: one clear message that names the key, the value and what is allowed ---

FEDSC: dict[str, Any] = {"extractor.method": "fedsc"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"gate.top-kk": 1}, "gate.top-kk: unknown key; did you mean top-k?"),
    ({"gate": {"top_kk": 1}}, "gate.top-kk: unknown key; did you mean top-k?"),
    ({"gaet.top-k": 1}, "gaet: unknown key; did you mean gate?"),
    ({"fedsc.weight": 3}, "fedsc: unknown key; did you mean contrast.weight?"),
    ({"fedsc": 3}, "fedsc: unknown key; did you mean contrast?"),
    ({"fedgate": {"rounds": 3}}, "fedgate: unknown key; did you mean gate.rounds?"),
    ({"zzz": 1}, "zzz: unknown key; known keys: adapter, alignment, baseline, contrast, "),
    ({"run.zzz": 1}, "run.zzz: unknown key; known keys: checkpoint-every, "),
    ({"data.tau": "much"}, "data.tau: input should be a valid number"),
    ({"data.tau": "much"}, "got 'much'"),
    ({"data.tau": 0}, "data.tau: input should be greater than 0, got 0"),
    ({"data.tau": -0.1}, "data.tau: input should be greater than 0, got -0.1"),
    ({"data.tau": float("inf")}, "data.tau: input should be a finite number, got inf"),
    ({"data.tau": float("nan")}, "data.tau: "),
    ({"data.num-clients": 1}, "data.num-clients: input should be greater than or equal to 2"),
    ({"data.num-clients": 2.5}, "got 2.5"),
    ({"data.scheme": "x"}, "'pathological', 'natural' or package.module:Name, got 'x'"),
    ({"data.flip": "perhaps"}, "data.flip: input should be a valid boolean"),
    ({"data": 3}, "data: is a section; set its keys"),
    ({"gate.top-k": True}, "gate.top-k: a value is wanted, not a switch, got True"),
    ({"expert.hidden": False}, "expert.hidden: a value is wanted, not a switch, got False"),
    ({"gate.top-k": 11}, "gate.top-k is 11 but there are only 10 experts (data.num-clients)"),
    ({"gate.top-k": 0}, "gate.top-k: input should be greater than or equal to 1, got 0"),
    (
        {"gate.methods": ""},
        "gate.methods: name at least one gate of random, rolling, federated, local",
    ),
    ({"gate.methods": []}, "gate.methods: name at least one gate of"),
    ({"gate.methods": "random,federatd"}, "got 'federatd'"),
    ({"gate.distribution": "0.5,0.5"}, "gate.distribution has 2 entries for 10 experts"),
    ({"gate.keep": 1.5}, "gate.keep: input should be less than or equal to 1, got 1.5"),
    (
        {"extractor.local-epochs": 1},
        "extractor: set exactly one of local-steps and local-epochs above 0, got 1 and 1",
    ),
    ({"extractor.local-steps": 0}, "local-epochs above 0, got 0 and 0"),
    ({"extractor.ema": 1.0}, "extractor.ema: input should be less than 1, got 1.0"),
    ({"expert.sharing": "none"}, "the only gate then is local, got gate.methods = random, rolling"),
    ({"run.min-replies": 11}, "run.min-replies is 11 but there are 10 clients"),
    (
        {"run.min-replies": 8},
        "run.min-replies is 8 but gate.fraction-train = 0.7 asks only 7 of 10 clients in a round; "
        "allowed: run.min-replies = 1 to 7, or a larger gate.fraction-train",
    ),
    (
        {"run.min-replies": 4, "extractor.fraction-train": 0.3},
        "run.min-replies is 4 but extractor.fraction-train = 0.3 asks only 3 of 10 clients",
    ),
    (
        {
            "run.min-replies": 4,
            "gate.fraction-train": 0.3,
            "gate.rolling": "federated",
            "gate.methods": "rolling",
        },
        "run.min-replies is 4 but gate.fraction-train = 0.3 asks only 3 of 10 clients",
    ),
    (
        {"run.min-replies": 3, "run.system": "aligned", "alignment.fraction-train": 0.1},
        "run.min-replies is 3 but alignment.fraction-train = 0.1 asks only 2 of 10 clients",
    ),
    (
        {"run.min-replies": 6, "run.system": "fedprox", "baseline.fraction-train": 0.5},
        "run.min-replies is 6 but baseline.fraction-train = 0.5 asks only 5 of 10 clients",
    ),
    ({"run.name": "../x"}, "run.name: '../x' is not allowed; allowed: letters, digits,"),
    ({"run.seed": -1}, "run.seed: input should be greater than or equal to 0, got -1"),
    ({"gate": 1, "gate.top-k": 2}, "gate.top-k: gate is a value, not a table"),
    ({"contrast.weight": 0}, "contrast.weight: input should be greater than 0, got 0"),
    ({"contrast.running": 1}, "contrast.running: input should be less than 1, got 1"),
    ({"contrast.dim": 1}, "contrast.dim: input should be greater than or equal to 2, got 1"),
    ({"contrast.dim": 2049}, "contrast.dim: input should be less than or equal to 2048, got 2049"),
    ({"contrast.hidden": 0}, "contrast.hidden: input should be greater than or equal to 1, got 0"),
    ({"contrast.projector-norm": "group"}, "'batch', 'layer' or 'none', got 'group'"),
    ({"contrast.exchange": "three"}, "contrast.exchange: input should be 'merged' or 'two-phase'"),
    ({"contrast.source": "x"}, "contrast.source: input should be 'auto', 'batches' or 'pass'"),
    ({"contrast.share": "x"}, "contrast.share: input should be 'samples', 'schedule' or 'own'"),
    ({"contrast.refresh": -1}, "contrast.refresh: input should be greater than or equal to 0"),
    ({"contrast.crop": 0.0005}, "contrast.crop: input should be greater than or equal to 0.001"),
    ({"contrast.jitter": 1.1}, "contrast.jitter: input should be less than or equal to 1"),
    ({"contrast.hue": 0.6}, "contrast.hue: input should be less than or equal to 0.5"),
    ({"contrast.grey": -0.1}, "contrast.grey: input should be greater than or equal to 0"),
    ({"contrast.probe": "x"}, "contrast.probe: input should be 'pooled', 'local' or 'none'"),
    ({"contrast.probe-images": 9}, "contrast.probe-images: input should be greater than or equal"),
    ({"privacy.epsilon": 0}, "privacy.epsilon: input should be greater than 0, got 0"),
    ({"privacy.epsilon": float("inf")}, "privacy.epsilon: input should be a finite number"),
    ({"privacy.delta": 0}, "privacy.delta: input should be greater than 0, got 0"),
    ({"privacy.delta": 1}, "privacy.delta: input should be less than 1, got 1"),
    ({"privacy.releases": 0}, "privacy.releases: input should be greater than or equal to 1"),
    ({"privacy.adjacency": "x"}, "'replace-one' or 'add-remove', got 'x'"),
    (
        {"privacy.enabled": True},
        "privacy.enabled covers the correlation matrices of extractor.method = fedsc, and sums "
        "over latents (head.method = sums), got extractor.method = fedce",
    ),
    (
        FEDSC | {"privacy.enabled": True, "contrast.source": "batches"},
        "set contrast.source = pass or auto, got batches",
    ),
    (
        FEDSC | {"privacy.enabled": True, "privacy.adjacency": "add-remove"},
        "matrices by their number, which travels in clear: use replace-one",
    ),
    ({"head.rounds": 3}, "trains a head where stage 1 leaves none"),
    (FEDSC | {"extractor.rounds": 9, "contrast.first": 10}, "no matrix would ever be shared"),
    (FEDSC | {"extractor.batch-size": 1}, "extractor.batch-size = 1 leaves extractor.method"),
    (
        FEDSC | {"privacy.enabled": True, "privacy.delta": 0.01, "data.train-per-client": 100},
        "privacy.delta must be below 1 / images = 0.01 of a client",
    ),
    ({"gate.folds": 1}, "folds must be 0 (use a hold-out) or at least 2, got 1"),
    (FEDSC | {"expert.init": "head"}, "expert.init = head needs a head"),
]


@pytest.mark.parametrize(("values", "text"), BAD, ids=lambda value: str(value)[:40])
def test_bad_values_are_named(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(values)
    assert text in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse({"data.tau": 0, "gate.top-kk": 1, "run.seed": "x"})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "data.tau",
        "gate.top-kk",
        "run.seed",
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"gate.fraction-train": 1.0},
        {"gate.methods": "local"},
        {"gate.methods": "rolling"},  # a cycle of it asks everybody
        {"expert.sharing": "none", "gate.methods": "local"},
        {"run.system": "fedavg"},
        {"run.system": "aligned", "extractor.fraction-train": 0.1},
        {"extractor.rounds": 0, "extractor.fraction-train": 0.1, "gate.methods": "local"},
    ],
    ids=str,
)
def test_replies_of_all_may_be_wanted_where_no_stage_asks_fewer(changed: dict[str, Any]) -> None:
    assert Config.parse({"run.min-replies": 10, **changed}).run.min_replies == 10


@pytest.mark.parametrize("source", ["auto", "pass"])
@pytest.mark.parametrize("exchange", ["merged", "two-phase"])
def test_private_matrices_go_with_either_exchange(source: str, exchange: str) -> None:
    values = {"privacy.enabled": True, "contrast.source": source, "contrast.exchange": exchange}
    assert Config.parse(FEDSC | values).privacy.enabled


@pytest.mark.parametrize("crop", [0.001, 1])
def test_what_the_configuration_allows_the_views_allow(crop: float) -> None:
    contrast = Config.parse({"contrast.crop": crop, "contrast.hue": 0.5}).contrast
    assert Views(smallest=contrast.crop, hue=contrast.hue).smallest == crop


def test_the_parts_that_may_go_with_experts_that_stay_home() -> None:
    values = {"expert.sharing": "none", "gate.methods": "local"}
    assert Config.parse(values).expert.sharing == "none"


@pytest.mark.parametrize("text", ["gate.top-k", "=3", " = 3", ""])
def test_overrides_without_a_key_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set wants key=value, got"):
        Config.load(overrides=[text])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read the recipe .*: No such file or directory"),
        (b"[gate\n", "is not valid TOML"),
        (b"\xff\xfe", "is UTF-16 text; allowed: UTF-8"),
        (b"[gate]\ntop-kk = 1\n", "did you mean top-k"),
    ],
)
def test_bad_recipes(content: bytes | None, text: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    if content is not None:
        recipe.write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        Config.load(recipe)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"extractor.norm": "batch"}, [True, True]),
        ({"extractor.norm": "batch", "data.scheme": "iid"}, [False, True]),
        ({"gate.methods": "random", "run.controls": "fedavg"}, [False, False]),
        ({"gate.methods": "random,global", "run.controls": "fedavg"}, [False, True]),
        ({"run.system": "aligned"}, [False, False]),
    ],
)
def test_advice_names_batch_norm_under_skew_and_pooled_data(
    values: dict[str, str], said: list[bool]
) -> None:
    notes = "\n".join(Config.parse(values).advice())
    assert ["BatchNorm" in notes, "pool the clients' data" in notes] == said


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"run.system": "fedem", "baseline.anchors": False, "baseline.experts": 5},
            ["baseline.anchors = false is read by fedjets, and not by run.system = fedem"],
        ),
        (
            {"run.system": "fedavg", "baseline.held": 1, "baseline.rounds": 7},
            [
                "baseline.held = 1 is read by fedmoe, flex-moe, fedjets, and not by "
                "run.system = fedavg"
            ],
        ),
        (
            {"baseline.rounds": 7, "baseline.anchors": False},
            [
                "baseline.anchors = false, baseline.rounds = 7: for published systems "
                "(nmoe systems), and run.system = networked reads none of baseline.*"
            ],
        ),
        ({"run.system": "fedavg", "baseline.held": 2}, []),  # the default
        ({"run.system": "fedjets", "baseline.anchors": False}, []),
        ({}, []),
    ],
)
def test_advice_names_options_that_other_systems_read(
    values: dict[str, object], told: list[str]
) -> None:
    """No error: studies give all their systems one list of settings."""
    notes = Config.parse(values).advice()
    assert [note for note in notes if "baseline." in note] == told


def test_what_a_pattern_allows_is_said_in_words() -> None:
    """Nobody reads regular expressions; one example per field with a pattern."""
    wrong = {"run.name": "-x", "run.device": "gpu"}
    patterned = {
        f"{section}.{name}"
        for section, field in Config.model_fields.items()
        for name, one in field.annotation.model_fields.items()  # type: ignore[union-attr]
        if any(getattr(told, "pattern", None) for told in one.metadata)
    }
    assert patterned == set(wrong)
    for key, value in wrong.items():
        with pytest.raises(ConfigError, match=f"^{key}: '{value}' is not allowed; allowed: [a-z]"):
            Config.parse({key: value})


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("run.system", "fedperr", "fedper"),
        ("extractor.method", "pretraned", "pretrained"),
        ("gate.methods", "federated,locl", "local"),
        ("extractor.backbone", "resnet-18", "resnet18"),
        ("data.scheme", "dirichle", "dirichlet"),
    ],
)
def test_a_misspelt_choice_is_told_what_was_probably_meant(
    key: str, value: str, meant: str
) -> None:
    with pytest.raises(ConfigError, match=f"; did you mean {meant}\\?"):
        Config.parse({key: value})
