"""Experts beside the feed-forward part of blocks: what they add, where they stand, what travels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.models import AdaptedLM, SmallLM, SmallSizes, open_language_model, split_lm

TOKENS = torch.arange(12).view(2, 6) % 11


def network(blocks: int = 3) -> SmallLM:
    torch.manual_seed(0)
    model = SmallLM(SmallSizes(11, 8, blocks, 2, 6))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def beside(**options: Any) -> AdaptedLM:
    return AdaptedLM(network(), 11, kind="ffn", **options)


def expert(model: AdaptedLM, rank: int, seed: int = 1) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    return {n: torch.randn(p.shape).numpy() for n, p in model.fresh(rank).items()}


def zero(model: AdaptedLM, rank: int = 4) -> dict[str, np.ndarray]:
    torch.manual_seed(2)
    return {name: part.numpy() for name, part in model.fresh(rank).items()}


def slowly(
    plain: SmallLM, parts: dict[str, torch.Tensor], first: int, scale: float
) -> torch.Tensor:
    """The model of the paper, written out: experts beside every part from ``first``."""
    hidden = plain.tokens(TOKENS) + plain.places(torch.arange(6))
    for number, block in enumerate(plain.blocks):
        after = block(hidden)
        if number >= first:
            down = block.down
            block.down = nn.Linear(32, 8, bias=False)
            nn.init.zeros_(block.down.weight)
            attended = block(hidden)
            block.down = down
            read = F.rms_norm(attended, (8,))
            a, b = (parts[f"blocks.{number}.down.{side}"] for side in "AB")
            after = after + scale * F.gelu(read @ a.T) @ b.T
        hidden = after
    logits = F.linear(F.rms_norm(hidden, (8,)), plain.tokens.weight)
    return logits + parts.get("bias", torch.zeros(11))


@pytest.mark.parametrize(("blocks", "first"), [("upper", 1), ("all", 0)])
def test_an_expert_adds_a_network_of_two_layers_to_each_part(blocks: str, first: int) -> None:
    model = beside(blocks=blocks, scale=0.5)
    assert model.layers == tuple(f"blocks.{n}.down" for n in range(first, 3))
    parts = expert(model, 5)
    model.load(parts)
    wanted = slowly(network(), {n: torch.from_numpy(p) for n, p in parts.items()}, first, 0.5)
    torch.testing.assert_close(model.logits(TOKENS), wanted, atol=1e-4, rtol=1e-4)


def test_a_fresh_expert_changes_nothing_and_alone_is_trained() -> None:
    model, plain = beside(), network()
    model.load(zero(model))
    torch.testing.assert_close(model.logits(TOKENS), plain(TOKENS))
    assert all(part.requires_grad for part in model.learners().values())
    assert not any(part.requires_grad for part in model.network.parameters())
    names = {f"blocks.{n}.down.{side}" for n in (1, 2) for side in "AB"} | {"bias"}
    assert set(model.state()) == names == set(model.learners())


def test_a_step_is_that_of_a_bare_loop() -> None:
    model, plain = beside(bias=False), network()
    start = zero(model)
    start |= {n: np.full_like(p, 0.1) for n, p in start.items() if n.endswith(".B")}
    model.load(start)
    optimizer = torch.optim.AdamW(model.learners().values(), lr=0.01, weight_decay=0.0)
    model.losses(TOKENS).mean().backward()
    optimizer.step()

    own = {n: nn.Parameter(torch.from_numpy(p.copy())) for n, p in start.items()}
    bare = torch.optim.AdamW(own.values(), lr=0.01, weight_decay=0.0)
    logits = slowly(plain, dict(own), 1, 2.0)[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    bare.step()
    for name, part in model.state().items():
        np.testing.assert_allclose(part, own[name].detach().numpy(), atol=1e-5, err_msg=name)
        assert not np.array_equal(part, start[name])


def test_experts_of_several_ranks_take_turns_and_gates_see_the_backbone_alone() -> None:
    model = beside(blocks="all")
    plain = next(beside(blocks="all").states(TOKENS.numpy()))
    small, large = expert(model, 1), expert(model, 4, seed=2)
    said = []
    for parts in (small, large, small, large):
        model.load(parts)
        said.append(model.logits(TOKENS).detach())
        np.testing.assert_array_equal(next(model.states(TOKENS.numpy())), plain)
    assert torch.equal(said[0], said[2])
    assert torch.equal(said[1], said[3])
    assert not torch.allclose(said[0], said[1])


def test_a_device_that_serves_the_upper_half_says_the_same() -> None:
    model = beside(bias=False)
    halves = split_lm(model)
    model.load(expert(model, 3))
    with torch.no_grad():
        said = halves.output(halves.upper(halves.lower(TOKENS)))
        torch.testing.assert_close(said, model.logits(TOKENS))


def test_a_low_rank_adapter_is_none_of_this_kind() -> None:
    adapter = AdaptedLM(network(), 11)
    with pytest.raises(ReplyError, match="for another expert"):
        beside().load({name: part.numpy() for name, part in adapter.fresh(2).items()})


def test_there_is_room_for_as_many_numbers_as_the_part_has_inside() -> None:
    model = beside()
    model.check_rank(32)
    with pytest.raises(ConfigError, match=r"allowed: 1 to 32, the width inside .* blocks.1.down"):
        model.check_rank(33)


def test_gated_parts_of_transformers_have_one(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    opened = open_language_model(
        f"transformers:{tmp_path}", "", vocab_size=16, window=6, cache=tmp_path
    )
    plain = opened.network(TOKENS).logits.detach()
    model = AdaptedLM(opened.network, 16, kind="ffn")
    assert model.layers == ("model.layers.1.mlp.down_proj",)
    model.load(zero(model))
    torch.testing.assert_close(model.logits(TOKENS), plain)
    model.load(expert(model, 3))
    assert not torch.allclose(model.logits(TOKENS), plain)


def test_a_backbone_without_such_a_part_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"mix": nn.Linear(4, 4)}) for _ in range(2))

    with pytest.raises(
        ConfigError, match=r"layers.1 of the backbone has no feed-forward part .* mix"
    ):
        AdaptedLM(Flat(), 11, kind="ffn")
