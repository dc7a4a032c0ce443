"""The held-out evaluation: whose texts, which numbers, in which columns."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.lm import adapter_parameters, load_adapter
from shielded_recrl.rl.evaluate import (
    click_report,
    load_snapshots,
    rankings,
    set_adapter,
    text_report,
)
from shielded_recrl.rl.settings import EvaluationSettings
from shielded_recrl.rl.slate import Slate

CPU = torch.device("cpu")
SETTINGS = EvaluationSettings(users=5, items_per_user=2, sessions=20, bootstrap=50)


@pytest.fixture
def slate(world):
    return make_slate(world)


def make_slate(world, **changes) -> Slate:
    serving = world.serving()
    people = np.concatenate([serving.roles.protected, serving.roles.heldout])
    scores = np.random.default_rng(0).normal(size=(len(people), serving.splits.n_items + 1))
    return Slate(serving, scores, people, SETTINGS.model_copy(update=changes), seed=1)


def test_a_slate_holds_the_top_unseen_items_of_heldout_users(world, slate):
    serving = world.serving()
    heldout = serving.roles.heldout
    users = list(dict.fromkeys(slate.users.tolist()))
    assert slate.users.tolist() == np.repeat(users, 2).tolist()
    assert len(users) == 5
    assert set(users) <= set(heldout.tolist())
    scores = np.random.default_rng(0).normal(size=(12, 21))
    for user in users:
        own = scores[len(serving.roles.protected) + heldout.tolist().index(user)]
        own[[0, *serving.splits.history("test", user)]] = -np.inf
        best = np.argsort(-own)[:2]
        assert [t for t in slate.triples if t[0] == user] == [
            (user, int(best[0]), 1),
            (user, int(best[1]), 2),
        ]


def test_texts_are_measured_row_by_row(slate):
    request = slate.requests[0]
    good = f"You may enjoy {request.about.title} since you liked {request.history[-1].title}."
    measured = slate.measure([good, *[""] * 9])
    assert measured["quality"][0] > 0.5
    assert not measured["quality"][1:].any()
    assert (measured["propensity"] > 0).all()
    assert (measured["propensity"] < 1).all()
    empty = slate.measure([""] * 10)
    assert (measured["clicks"] >= empty["clicks"]).all()
    np.testing.assert_array_equal(measured["clicks"][1:], empty["clicks"][1:])


def test_click_report(slate):
    low, high = slate.clicks(np.full(10, 0.2)), slate.clicks(np.full(10, 0.9))
    best = slate.clicks(np.ones(10))["clicks"].mean()
    got = click_report(slate, low, high, SETTINGS, seed=0)
    before, after = low["clicks"].mean(), high["clicks"].mean()
    assert before < after <= best
    assert (got["before"], got["after"]) == (before, after)
    assert got["relative"] == pytest.approx(after / before)
    assert got["attainable"] == pytest.approx(best / before)
    assert got["lift_share"] == pytest.approx((after - before) / (best - before))
    assert got["relative_low"] <= got["relative"] <= got["relative_high"]
    same = click_report(slate, low, low, SETTINGS, seed=0)
    assert (same["relative"], same["relative_low"], same["relative_high"]) == (1.0, 1.0, 1.0)
    assert (same["lift_share_low"], same["lift_share_high"]) == (0.0, 0.0)


def test_a_simulator_that_ignores_quality_is_reported(world):
    """quality_weight 0 is allowed: relative CTR is 1, and there is no lift to have a share of."""
    settings = SETTINGS.model_copy(update={"quality_weight": 0.0})
    slate = make_slate(world, quality_weight=0.0)
    low, high = slate.clicks(np.zeros(10)), slate.clicks(np.full(10, 0.9))
    got = click_report(slate, low, high, settings, seed=0)
    assert got["relative"] == got["attainable"] == 1.0
    json.dumps(got, allow_nan=False)


def test_text_report_by_hand():
    measured = {"quality": np.array([0.5, 0.5, 0, 1]), "words": np.array([3, 3, 0, 1])}
    got = text_report(["One two three.", "One two three.", "", "Four!"], measured)
    assert got == {"words": 7 / 4, "quality": 0.5, "unique": 0.75, "empty": 0.25}


def test_rankings_name_role_and_position(world):
    serving = world.serving()
    people = np.concatenate([serving.roles.protected, serving.roles.heldout])
    scores = np.random.default_rng(0).normal(size=(len(people), serving.splits.n_items + 1))
    frame = rankings(serving, people, {0: scores, 8: -scores})
    assert frame.schema == {
        "step": pl.Int32,
        "role": pl.String,
        "user": pl.Int32,
        "position": pl.Int32,
        "item": pl.Int32,
    }
    assert set(frame["step"]) == {0, 8}
    roles = dict(frame.select("user", "role").unique().iter_rows())
    assert {u for u, role in roles.items() if role == "protected"} == set(serving.roles.protected)
    assert {u for u, role in roles.items() if role == "heldout"} == set(serving.roles.heldout)
    user = int(people[3])
    rows = frame.filter((pl.col("user") == user) & (pl.col("step") == 0))
    own = scores[3].copy()
    own[[0, *serving.splits.history("test", user)]] = -np.inf
    assert rows["item"].to_list() == np.argsort(-own)[:10].tolist()
    assert rows["position"].to_list() == list(range(1, 11))


def test_snapshots_are_read_in_order(tmp_path):
    path = tmp_path / "snapshots.safetensors"
    tensors = {f"step-{step:06d}/a.b": np.full(2, step) for step in (12, 4, 100)}
    save_file(tensors, path)
    got = load_snapshots(path, {"a.b"})
    assert list(got) == [4, 12, 100]
    assert got[12]["a.b"].tolist() == [12, 12]


def test_a_file_without_snapshots_is_one_line(tmp_path):
    save_file({}, tmp_path / "empty")
    with pytest.raises(UserError, match="no snapshot"):
        load_snapshots(tmp_path / "empty", {"a.b"})
    with pytest.raises(UserError, match="not a readable"):
        load_snapshots(tmp_path / "none", {"a.b"})
    save_file({"step-000004/c": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(UserError, match="no snapshot of this run's adapter"):
        load_snapshots(tmp_path / "other", {"a.b"})


def test_a_snapshot_is_put_into_the_adapter(world):
    model = load_adapter(load_base(world.base, "fp32", CPU), world.adapter)
    weights = {name: np.full(w.shape, 0.5, "f4") for name, w in adapter_parameters(model).items()}
    set_adapter(model, weights)
    assert all((weight == 0.5).all() for weight in adapter_parameters(model).values())
