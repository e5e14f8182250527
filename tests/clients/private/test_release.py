"""One way out for private matrices: the same for FedSC's handler and for other people's apps."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import nmoe_flower
from nmoe_flower import records
from nmoe_flower.clients import PrivateMatrix
from nmoe_flower.clients.private import MatrixRelease
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import BudgetError, ConfigError
from nmoe_flower.privacy import Budget, GaussianMechanism, noise_multiplier_for, svec

SIZE, DIM = 50, 4
BUDGET = Budget(epsilon=8.0, delta=1e-3)
NOISE = noise_multiplier_for(8.0, 1e-3, releases=2)
MATRIX = torch.diag(torch.tensor([0.5, 0.25, 0.125, 0.0], dtype=torch.float64))


def way_out(folder: Path, *, secure: bool = False, client: int = 0) -> MatrixRelease:
    mechanism = GaussianMechanism(NOISE, 1.0, SIZE, secure=secure)
    return MatrixRelease(folder, client, BUDGET, mechanism)


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_it_is_the_mechanism_and_the_ledger(tmp_path: Path) -> None:
    out = way_out(tmp_path)
    assert torch.equal(out.release(MATRIX, stream()), out.mechanism.release(MATRIX, stream()))
    assert (tmp_path / "privacy.json").read_text() == (
        '{"spent": {"0": [[%r, 1]]}, "round": 0}' % NOISE  # noqa: UP031
    )
    assert out.told == {
        "noise-multiplier": NOISE,
        "noise-std": NOISE * 2**0.5 / SIZE,
    }


def test_the_budget_ends_on_the_disk(tmp_path: Path) -> None:
    for _ in range(2):
        assert way_out(tmp_path).affords()
        way_out(tmp_path).release(MATRIX, stream())
    assert not way_out(tmp_path).affords()
    with pytest.raises(BudgetError):
        way_out(tmp_path).release(MATRIX, stream())


def test_a_round_is_paid_for_once(tmp_path: Path) -> None:
    for _ in range(3):
        assert way_out(tmp_path).affords(server_round=4)
        way_out(tmp_path).release(MATRIX, stream(), server_round=4)
    way_out(tmp_path).release(MATRIX, stream(), server_round=5)
    assert way_out(tmp_path).affords(server_round=5)
    assert not way_out(tmp_path).affords(server_round=6)


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (3 * MATRIX, "were they clipped"),
        (-MATRIX, "no eigenvalue below 0"),
        (MATRIX * torch.nan, "finite"),
        (MATRIX[:2], r"must be \[D, D\]"),
        (MATRIX + torch.triu(torch.full((DIM, DIM), 0.01), 1), "symmetric"),
    ],
    ids=["scale", "sign", "nan", "shape", "asymmetric"],
)
def test_what_is_refused_costs_nothing(tmp_path: Path, matrix: torch.Tensor, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        way_out(tmp_path).release(matrix, stream())
    assert not (tmp_path / "privacy.json").exists()


def test_the_mod_sends_what_the_handler_sends_and_writes_the_same_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same numbers from the operating system."""
    drawn = np.random.default_rng(0).standard_normal(DIM * (DIM + 1) // 2)
    monkeypatch.setattr("nmoe_flower.privacy.mechanism.secure_normal", lambda size: drawn[:size])
    app = ClientApp(mods=[PrivateMatrix(tmp_path / "mod", budget=BUDGET, releases=2)])

    @app.train()
    def train(message: Message, context: Any) -> Message:
        matrix = {"correlation": records.from_numpy({"packed": MATRIX.numpy()})}
        metrics = {"metrics": MetricRecord({"num-examples": SIZE})}
        return Message(RecordDict({**matrix, **metrics}), reply_to=message)

    with InProcessGrid(app, 1) as grid:
        (node,) = grid.get_node_ids()
        message = Message(RecordDict({"config": ConfigRecord()}), node, "train")
        (reply,) = grid.send_and_receive([message])
    released = way_out(tmp_path / "handler", secure=True).release(MATRIX)
    sent = records.to_numpy(reply.content.array_records["correlation"])["packed"]
    np.testing.assert_array_equal(sent, svec(released).float().numpy())
    ledgers = [(tmp_path / at / "privacy.json").read_bytes() for at in ("mod/0", "handler")]
    assert ledgers[0] == ledgers[1]


def found(kind: str) -> set[str]:
    """The modules of clients/ that ask for ``privacy.<kind>`` of a configuration."""
    root = Path(nmoe_flower.__file__).parent / "clients"
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr == kind
        and isinstance(node.value, ast.Attribute | ast.Name)
        and (node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id)
        in {"privacy", "settings"}
    }


def test_no_handler_asks_whether_something_is_private() -> None:
    """Each is asked in one place; who adds a handler takes its way from there."""
    assert found("enabled") == {"fedsc_matrices.py", "sums.py"}  # what leaves is not alike
    assert found("weights") == {"weights.py"}
