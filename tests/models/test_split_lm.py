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
