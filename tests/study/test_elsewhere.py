"""What is read from another place on another machine is the same setting; another name is not."""

from typing import Any

import pytest

from nmoe_flower.config import Config
from nmoe_flower.study.elsewhere import differing
from nmoe_flower.study.publish import portable

TEXT = {
    "run.system": "language",
    "data.kind": "text",
    "data.scheme": "natural",
    "data.dataset": "./texts",
    "extractor.method": "pretrained",
    "extractor.backbone": "transformers:any",
}


@pytest.mark.parametrize(
    ("key", "ours", "there", "same"),
    [
        ("text.tokenizer", "./words/tokenizer.json", "/data/words/tokenizer.json", True),
        ("text.tokenizer", "gpt2", "bytes", False),
        ("text.tokenizer", "gpt2", "/data/gpt2", False),
        ("extractor.backbone", "transformers:./tiny", "transformers:/data/tiny", True),
        ("extractor.backbone", "transformers:me/tiny", "transformers:me/small", False),
        ("extractor.backbone", "small-lm", "transformers:/data/tiny", False),
        ("extractor.weights", "./a.gguf", "/data/a.gguf", True),
    ],
)
def test_paths_may_differ_and_names_may_not(key: str, ours: str, there: str, same: bool) -> None:
    asked, found = (Config.parse({**TEXT, key: value}) for value in (ours, there))
    told = differing(asked, found.flat())
    assert told == ([] if same else [f"{key} = {there!r}, the study has {ours!r}"])


def test_what_is_published_names_no_folder_of_this_machine() -> None:
    given: dict[str, Any] = {
        **TEXT,
        "data.dataset": "/data/texts",
        "data.cache-dir": "/tmp/cache",
        "extractor.backbone": "transformers:/data/tiny",
        "extractor.weights": "/data/weights.gguf",
        "text.tokenizer": "/data/words/tokenizer.json",
    }
    told = portable(Config.parse(given).model_dump(by_alias=True, mode="json"))
    assert "/data" not in str(told)
    assert told["text"]["tokenizer"] == "./tokenizer.json"
    assert told["extractor"]["backbone"] == "transformers:./tiny"
    assert Config.parse(told).extractor.weights == "./weights.gguf"
    aligned = {"run.system": "aligned", "alignment.trace": "/data/trace.json"}
    told = portable(Config.parse(aligned).model_dump(by_alias=True, mode="json"))
    assert told["alignment"]["trace"] == "./trace.json"
