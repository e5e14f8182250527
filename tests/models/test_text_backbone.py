"""A backbone of text as a given extractor: rows of tokens in, the mean of hidden states out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nmoe_flower.config import Config
from nmoe_flower.data import ByteTokenizer
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.models import PretrainedExtractor, SmallLM, SmallSizes, configured_extractor

T = 6


def extractor(window: int = T, **changes: Any) -> PretrainedExtractor:
    values = {f"extractor.{key}": value for key, value in changes.items() if key != "tokenizer"}
    told = {
        "data.kind": "text",
        "data.dataset": "posts",
        "text.tokenizer": changes.get("tokenizer", "bytes"),
        "text.window": window,
        "text.prefix": 1,
        "extractor.method": "pretrained",
        "extractor.backbone": "small-lm",
    }
    found = configured_extractor(Config.parse(told | values), (window, 1, 1))
    assert isinstance(found, PretrainedExtractor)
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks with weights that do something."""
    torch.manual_seed(1)
    model = SmallLM(SmallSizes(11, 8, 3, 2, T))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("small")
    model.save(folder)
    return folder


def rows(*documents: list[int]) -> Tensor:
    filled = [[*tokens, *[-1] * (T - len(tokens))] for tokens in documents]
    return torch.tensor(filled, dtype=torch.float32)[:, :, None, None]


def slowly(model: SmallLM, tokens: list[int], blocks: int) -> Tensor:
    """One document alone, without filling, token by token."""
    hidden = model.tokens.weight[tokens] + model.places.weight[: len(tokens)]
    for block in list(model.blocks)[:blocks]:
        hidden = block(hidden[None])[0]
    total = torch.zeros(hidden.shape[1])
    for state in hidden:
        total += state / state.square().sum().sqrt() * len(state) ** 0.5
    return total / len(tokens)


DOCUMENTS = ([3, 1, 4], [5], [9, 2, 6, 5, 3, 5])


def test_latents_are_mean_states_below_the_upper_half(small: Path) -> None:
    found = extractor(weights=str(small))
    assert found.latent_dim == 8
    assert list(found.parameters()) == []
    wanted = torch.stack([slowly(SmallLM.read(small), tokens, 1) for tokens in DOCUMENTS])
    torch.testing.assert_close(found(rows(*DOCUMENTS)), wanted.detach())


def test_a_cut_names_layers_whose_states_are_joined(small: Path) -> None:
    found = extractor(weights=str(small), cut="blocks.1:1, blocks.0:1")
    model = SmallLM.read(small)
    wanted = [torch.cat([slowly(model, t, 2), slowly(model, t, 1)]) for t in DOCUMENTS]
    torch.testing.assert_close(found(rows(*DOCUMENTS)), torch.stack(wanted).detach())


def test_what_a_row_is_filled_up_with_does_not_matter_to_a_model_that_reads_both_ways(
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    name = f"transformers:{tmp_path}"
    found = extractor(backbone=name)
    short = found(rows([3, 1, 4]))
    alone = extractor(3, backbone=name)(torch.tensor([3.0, 1, 4])[None, :, None, None])
    torch.testing.assert_close(short, alone)
    again = extractor(backbone=name)  # its pooler is drawn anew, and nobody reads it
    assert torch.equal(found.hash, again.hash)


def test_a_drawn_backbone_is_the_same_in_every_run() -> None:
    torch.manual_seed(3)
    first = extractor(widths="16,16")
    torch.manual_seed(4)
    second = extractor(widths="16,16")
    assert torch.equal(first.hash, second.hash)
    assert first.backbone.network.vocab_size == ByteTokenizer.vocab_size
    with pytest.raises(ReplyError, match="has the hash"):
        first.check({"hash": extractor(widths="16,16,16").hash.numpy()})


def test_the_cut_is_in_the_hash(small: Path) -> None:
    plain = extractor(weights=str(small))
    assert not torch.equal(plain.hash, extractor(weights=str(small), cut="blocks.0:1").hash)


def test_states_have_one_size_whatever_the_first_token_says(small: Path) -> None:
    latents = extractor(weights=str(small))(rows([7], [1, 2]))
    assert latents[0].norm().item() == pytest.approx(8**0.5)
    assert F.normalize(latents, dim=1).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cut": "blocks.9:1"}, r"small-lm has no layer blocks.9; allowed: blocks.0 to blocks.2"),
        ({"cut": "tokens:1", "window": 7}, "text.window = 7: .* reads windows of up to 6 tokens"),
        ({"weights": "", "tokenizer": "tok.json"}, "small-lm without .* is drawn for bytes"),
    ],
)
def test_what_cannot_be_read_is_told(small: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        extractor(**{"weights": str(small), **changes})


def test_a_tokenizer_that_does_not_fit_is_told(small: Path) -> None:
    said = "knows 11 tokens, and the text has token 11: text.tokenizer must be the backbone's own"
    with pytest.raises(ConfigError, match=said):
        extractor(weights=str(small))(rows([11]))
