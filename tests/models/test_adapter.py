import numpy as np
import pytest
import torch
from torch import nn

from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.models import AdaptedLM, SmallLM, SmallSizes, blocks_of
from nmoe_flower.models.lower_half import LowerHalf

TOKENS = torch.arange(12).view(2, 6) % 11


def network(width: int = 8, blocks: int = 3) -> SmallLM:
    torch.manual_seed(0)
    model = SmallLM(SmallSizes(11, width, blocks, 2, 6))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def adapted(**options: object) -> AdaptedLM:
    return AdaptedLM(network(), 11, **options)  # type: ignore[arg-type]


def adapter(model: AdaptedLM, rank: int, seed: int = 1) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    return {n: torch.randn(p.shape).numpy() for n, p in model.fresh(rank).items()}


def test_a_fresh_adapter_changes_nothing_and_alone_is_trained() -> None:
    model, plain = adapted(), network()
    model.load({name: part.numpy() for name, part in model.fresh(2).items()})
    assert torch.allclose(model.logits(TOKENS), plain(TOKENS), atol=1e-6)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in model.learners().values()}


@pytest.mark.parametrize(
    ("options", "blocks"),
    [({}, [1, 2]), ({"blocks": "upper"}, [1, 2]), ({"blocks": "all"}, [0, 1, 2])],
)
def test_the_upper_half_or_all_blocks_are_adapted(
    options: dict[str, str], blocks: list[int]
) -> None:
    layers = [f"blocks.{b}.{name}" for b in blocks for name in ("qkv", "out", "up", "down")]
    assert list(adapted(**options).layers) == layers


def test_an_adapter_adds_the_scaled_product_of_its_factors() -> None:
    """So says the paper: W x + scale B A x."""
    model, plain = adapted(blocks="all", scale=0.5), network()
    parts = adapter(model, 2)
    model.load(parts)
    with torch.no_grad():
        for name in model.layers:
            product = torch.from_numpy(parts[f"{name}.B"] @ parts[f"{name}.A"])
            plain.get_submodule(name).weight += 0.5 * product
        wanted = plain(TOKENS) + torch.from_numpy(parts["bias"])
    assert torch.allclose(model.logits(TOKENS), wanted, atol=1e-4)


def test_a_full_rank_reaches_any_weights_of_the_layers() -> None:
    """Where a layer's lesser side is r, one factor is the identity and the other any change."""
    width = 8
    model, plain, wanted = adapted(blocks="all"), network(width), network(width)
    rng = np.random.default_rng(3)
    parts = {name: np.zeros(part.shape, np.float32) for name, part in model.fresh(width).items()}
    with torch.no_grad():
        for name in model.layers:
            weight = wanted.get_submodule(name).weight
            new = rng.normal(size=tuple(weight.shape)).astype(np.float32)
            change = (new - weight.numpy()) / 2.0  # which is the scale
            down, up = (
                (np.eye(width), change) if change.shape[1] == width else (change, np.eye(width))
            )
            parts[f"{name}.A"], parts[f"{name}.B"] = (np.float32(down), np.float32(up))
            weight.copy_(torch.from_numpy(new))
    model.load(parts)
    assert torch.allclose(model.logits(TOKENS), wanted(TOKENS), atol=1e-4)
    assert not torch.allclose(plain(TOKENS), wanted(TOKENS), atol=1.0)


def test_adapters_of_several_ranks_take_turns() -> None:
    model = adapted()
    small, large = adapter(model, 1), adapter(model, 4, seed=2)
    said = []
    for parts in (small, large, small, large):
        model.load(parts)
        said.append(model.logits(TOKENS).detach())
        assert model.rank == parts[f"{model.layers[0]}.A"].shape[0]
        state = model.state()
        assert state.keys() == parts.keys()
        assert all(np.array_equal(state[name], parts[name]) for name in parts)
    assert torch.equal(said[0], said[2])
    assert torch.equal(said[1], said[3])
    assert not torch.allclose(said[0], said[1])


def test_losses_are_those_of_cross_entropy_and_slices_change_nothing() -> None:
    model = adapted()
    model.load(adapter(model, 2))
    tokens = np.random.default_rng(0).integers(0, 11, (37, 6)).astype(np.uint16)
    logits = model.logits(torch.from_numpy(tokens.astype(np.int64))).log_softmax(dim=2)
    truth = torch.from_numpy(tokens[:, 1:].astype(np.int64))
    wanted = -logits[:, :-1].gather(2, truth[..., None])[..., 0]
    assert np.allclose(model.score(tokens), wanted.detach().numpy(), atol=1e-5)
    assert model.score(tokens[:0]).shape == (0, 5)


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_a_rank_beyond_the_layers_is_refused(rank: int) -> None:
    model = adapted()
    with pytest.raises(
        ConfigError, match=rf"adapter.rank = {rank}; allowed: 1 to 8, the least side"
    ):
        model.fresh(rank)


def test_an_adapter_for_another_backbone_is_refused() -> None:
    wide = AdaptedLM(network(width=16), 11)
    deep = AdaptedLM(network(blocks=6), 11)
    model = adapted()
    with pytest.raises(ReplyError, match=r"for another backbone: blocks\.1\.qkv\.A has shape"):
        model.load(adapter(wide, 2))
    with pytest.raises(ReplyError, match=r"has no blocks\.1\.qkv\.A"):
        model.load(adapter(deep, 2))
    parts = adapter(model, 2)
    del parts["bias"]
    with pytest.raises(ReplyError, match="it differs in bias"):
        model.load(parts)


def test_only_layers_of_the_blocks_can_be_targets() -> None:
    assert all(name.endswith((".qkv", ".up")) for name in adapted(targets=("qkv", "up")).layers)
    with pytest.raises(ConfigError, match="no layer 'q_proj'; allowed: qkv, out, up, down"):
        adapted(targets=("q_proj",))


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no list of blocks"):
        blocks_of(nn.Linear(2, 2))


def test_frozen_layers_in_bf16_leave_float32_masters() -> None:
    model = adapted(bf16=True)
    model.load(adapter(model, 2))
    assert {p.dtype for p in model.learners().values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        model.losses(TOKENS).mean().backward()
    assert all(p.grad is not None for p in model.learners().values())


def test_states_are_those_of_the_lower_half_whatever_adapter_is_at_work() -> None:
    """Here block after block by hand, one token's state brought to norm sqrt(d) at a time."""
    plain = network()
    hidden = plain.tokens(TOKENS) + plain.places(torch.arange(6))
    hidden = plain.blocks[0](hidden).detach().numpy()
    wanted = np.stack([[t * 8**0.5 / np.linalg.norm(t) for t in text] for text in hidden])
    model = adapted(blocks="all")
    for seed in (None, 1, 2):
        if seed is not None:
            model.load(adapter(model, 2, seed))
        found = np.concatenate(list(model.states(TOKENS.repeat(10, 1).numpy())))
        assert found == pytest.approx(np.tile(wanted, (10, 1, 1)), abs=1e-3)
    assert model.state()["bias"] == pytest.approx(adapter(model, 2, 2)["bias"])
    said = model.logits(TOKENS)
    assert not torch.allclose(said, plain(TOKENS), atol=0.1)  # the adapter is at work again
    assert all(part.requires_grad for part in model.learners().values())


class Tupled(nn.Module):
    """A block that says more than its hidden states, as some do, and takes them by name."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, str]:
        return self.block(hidden_states), "more"


class ByName(nn.Module):
    """A network that hands states to its blocks by name."""

    def __init__(self, plain: SmallLM) -> None:
        super().__init__()
        self.tokens, self.places = plain.tokens, plain.places
        self.layers = nn.ModuleList(Tupled(block) for block in plain.blocks)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            hidden = layer(hidden_states=hidden)[0]
        return torch.nn.functional.linear(hidden, self.tokens.weight)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_lower_half_that_is_kept_changes_no_loss_and_no_gradient(wrapped: bool) -> None:
    """Windows come again beside others; the same without anything kept."""

    def made() -> AdaptedLM:
        plain: nn.Module = ByName(network(blocks=4)) if wrapped else network(blocks=4)
        return AdaptedLM(plain, 11)

    model, slow = made(), made()
    slow._lower = None
    counted: list[int] = []
    lowest = model.network.get_submodule("layers.0.block.qkv" if wrapped else "blocks.0.qkv")
    lowest.register_forward_hook(lambda *_: counted.append(1))
    assert model._lower is not None
    for seed, rows in enumerate(([0, 1], [1], [1, 0, 1])):
        tokens = TOKENS[rows]
        found = []
        for one in (model, slow):
            one.load(adapter(one, 2, seed))
            one.train()
            losses = one.losses(tokens)
            losses.sum().backward()
            found.append((losses.detach(), [p.grad.clone() for p in one.learners().values()]))
            one.zero_grad()
        assert torch.allclose(found[0][0], found[1][0], rtol=1e-4)
        for mine, wanted in zip(found[0][1], found[1][1], strict=True):
            rounding = 1e-4 * float(wanted.abs().max())  # in sums of numbers as large
            assert torch.allclose(mine, wanted, rtol=0, atol=rounding)
        assert model.score(tokens.numpy()) == pytest.approx(found[1][0].numpy(), rel=1e-4)
        assert len(counted) == 2  # each of two windows once
    assert model._lower._bytes == 2 * 6 * 8 * 4


def test_the_oldest_states_go_first_and_come_back_alike() -> None:
    plain = network()
    most = 2 * 6 * 8 * 4  # two windows
    lower = LowerHalf(plain, [plain.blocks[0]], plain.blocks[1], most)
    windows = torch.arange(18).view(3, 6) % 11
    wanted = [lower.states(window[None]) for window in windows]
    assert lower._bytes == most
    assert torch.equal(lower.states(windows), torch.cat(wanted))
    assert lower._bytes == most
