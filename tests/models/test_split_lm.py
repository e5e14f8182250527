"""Halves of a language model, one after the other, are the whole: in one piece or in many."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import AdaptedLM, Past, SmallLM, SmallSizes, split_lm

TOKENS, WINDOW, WIDTH = 17, 12, 8
SIZES = {
    "vocab_size": TOKENS, "hidden_size": WIDTH, "intermediate_size": 12, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": WINDOW,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def drawn(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for part in network.parameters():
        torch.nn.init.normal_(part, std=0.3)
    return network


def small(**_: Any) -> torch.nn.Module:
    return drawn(SmallLM(SmallSizes(TOKENS, width=WIDTH, blocks=4, heads=2, window=WINDOW)))


def of_library(name: str, **more: Any) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{name}Config")(**{**SIZES, **more})
        return drawn(getattr(transformers, f"{name}ForCausalLM")(config))

    return make


def drawn_tokens(texts: int) -> torch.Tensor:
    return torch.randint(0, TOKENS, (texts, WINDOW), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(small, id="small-lm"),
        pytest.param(of_library("Llama"), id="llama"),
        pytest.param(of_library("Mistral", sliding_window=3), id="a-window-that-slides"),
        pytest.param(of_library("Gemma", head_dim=4), id="scaled-embeddings"),
    ],
)
@pytest.mark.parametrize("blocks", ["upper", "all"])
def test_halves_are_the_whole(make: Callable[[], torch.nn.Module], blocks: str) -> None:
    """With keys and values kept, texts of a batch may come in any pieces."""
    network = make()
    model = AdaptedLM(network, TOKENS, blocks=blocks)
    model.load(
        {n: 0.3 * torch.randn(p.shape).numpy() for n, p in model.fresh(2).items() if n != "bias"}
        | {"bias": torch.zeros(TOKENS).numpy()}
    )
    halves = split_lm(model)
    assert (halves.width, halves.context) == (WIDTH, WINDOW)
    tokens = torch.randint(0, TOKENS, (2, WINDOW))
    with torch.inference_mode():
        whole = model.logits(tokens)
        torch.testing.assert_close(halves.output(halves.upper(halves.lower(tokens))), whole)
        for sizes in ([12], [5, 7], [1] * 12, [3, 1, 1, 4, 3]):
            below, above, said = Past(), Past(), []
            for piece in tokens.split(sizes, dim=1):
                hidden = halves.lower(piece, below)
                said.append(halves.output(halves.upper(hidden, above)))
            torch.testing.assert_close(torch.cat(said, dim=1), whole, atol=1e-5, rtol=1e-4)
            assert (below.length, above.length) == (WINDOW, WINDOW)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(small, id="small-lm"),
        pytest.param(of_library("Llama"), id="llama"),
        pytest.param(of_library("Gemma", head_dim=4), id="scaled-embeddings"),
    ],
)
@pytest.mark.parametrize("blocks", ["upper", "all"])
def test_texts_of_other_lengths_go_on_side_by_side(
    make: Callable[[], torch.nn.Module], blocks: str
) -> None:
    """One joins late and one leaves early: each is said to be what the whole makes of it alone."""
    halves, tokens = split_lm(model := AdaptedLM(make(), TOKENS, blocks=blocks)), drawn_tokens(3)
    assert halves.joins
    with torch.inference_mode():
        whole = model.logits(tokens)
        below, above = [[Past(), Past(), Past()] for _ in range(2)]
        for row, begun in ((0, 5), (1, 2)):
            halves.upper(halves.lower(tokens[row : row + 1, :begun], below[row]), above[row])
        for step in range(6):
            rows = [row for row in range(3) if (row < 2 or step >= 2) and (row or step < 4)]
            at = [below[row].length for row in rows]
            latest = tokens[rows, at][:, None]
            hidden = halves.lower(latest, [below[row] for row in rows])
            found = halves.output(halves.upper(hidden, [above[row] for row in rows]))[:, 0]
            torch.testing.assert_close(found, whole[rows, at], atol=1e-5, rtol=1e-4)
    assert [past.length for past in above] == [5 + 4, 2 + 6, 4]


def test_blocks_that_look_at_the_latest_tokens_alone_take_turns() -> None:
    model = AdaptedLM(of_library("Mistral", sliding_window=3)(), TOKENS)
    assert not split_lm(model).joins


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (small, 2 * 4 * WIDTH * 4),  # keys and values, blocks, numbers, bytes of each
        (of_library("Llama"), 2 * 4 * WIDTH // 2 * 4),  # two heads of queries share one of keys
    ],
)
def test_what_a_token_takes_is_known(make: Callable[[], torch.nn.Module], wanted: int) -> None:
    assert split_lm(AdaptedLM(make(), TOKENS)).kept_bytes == wanted


def test_no_adapter_changes_the_lower_half() -> None:
    """Hidden states that a device made answer to any adapter."""
    model = AdaptedLM(small(), TOKENS)
    halves, tokens = split_lm(model), torch.randint(0, TOKENS, (1, WINDOW))
    before = halves.lower(tokens)
    model.load({name: part.numpy() + 1 for name, part in model.fresh(2).items()})
    assert torch.equal(halves.lower(tokens), before)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Gemma2", {"head_dim": 4, "final_logit_softcapping": 3.0}),  # the output is not linear
        ("Granite", {"logits_scaling": 2.0}),
        ("GPTNeoX", {}),  # no list of layers under that name
    ],
)
def test_what_cannot_be_cut_is_refused_by_its_name(name: str, more: dict[str, Any]) -> None:
    model = AdaptedLM(of_library(name, **more)(), TOKENS)
    with pytest.raises(ConfigError, match=f"{name}ForCausalLM cannot be cut .*allowed: small-lm"):
        split_lm(model)
