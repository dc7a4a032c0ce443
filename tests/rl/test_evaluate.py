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
from shielded_recrl.ranker.metrics import ranking_metrics
from shielded_recrl.rl.evaluation.proxy import ceiling, kl_between, overoptimisation, rewarded
from shielded_recrl.rl.evaluation.ranking import (
    people_metrics,
    ranker_scores,
    ranking_report,
    rankings,
    users_table,
)
from shielded_recrl.rl.evaluation.slate import (
    SIMULATED,
    Slate,
    column,
    slate_users,
    top_triples,
)
from shielded_recrl.rl.evaluation.snapshots import (
    check_snapshots,
    load_log,
    load_snapshots,
    set_adapter,
)
from shielded_recrl.rl.evaluation.texts import claim_report, text_report
from shielded_recrl.rl.rewards.base import Composite
from shielded_recrl.rl.settings import EvaluationSettings
from shielded_recrl.shield.serving import load_states

CPU = torch.device("cpu")
SETTINGS = EvaluationSettings(users=5, items_per_user=2, sessions=20, bootstrap=50)


@pytest.fixture
def slate(world):
    serving = world.serving()
    heldout = serving.roles.heldout
    scores = np.random.default_rng(0).normal(size=(len(heldout), serving.splits.n_items + 1))
    users = slate_users(heldout, SETTINGS, seed=1)
    rows = np.searchsorted(heldout, users)
    return Slate(serving, top_triples(serving, users, scores[rows], 2), SETTINGS, seed=1)


def test_a_slate_holds_the_top_unseen_items_of_heldout_users(world, slate):
    serving = world.serving()
    heldout = serving.roles.heldout
    users = list(dict.fromkeys(slate.users.tolist()))
    assert slate.users.tolist() == np.repeat(users, 2).tolist()
    assert len(users) == 5
    assert set(users) <= set(heldout.tolist())
    scores = np.random.default_rng(0).normal(size=(7, 21))
    for user in users:
        own = scores[heldout.tolist().index(user)]
        own[[0, *serving.splits.history("test", user)]] = -np.inf
        best = np.argsort(-own)[:2]
        assert [t for t in slate.triples if t[0] == user] == [
            (user, int(best[0]), 1),
            (user, int(best[1]), 2),
        ]


def slate_items(world):
    return world.serving().prompts.items[1:]


def test_texts_are_measured_row_by_row(world, slate):
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
    # The item's title and one of the history.
    assert measured["claims"].tolist() == measured["supported"].tolist() == [2, *[0] * 9]
    stranger = next(
        item.title for item in slate_items(world) if item not in (request.about, *request.history)
    )
    wrong = slate.measure([f"You may enjoy {stranger} or {request.about.title}.", *[""] * 9])
    assert (wrong["claims"][0], wrong["supported"][0]) == (2, 1)


def test_both_simulators_measure_the_same_texts(slate):
    request = slate.requests[0]
    good = f"You may enjoy {request.about.title} since you liked {request.history[-1].title}."
    batch = [good, *["Nothing much."] * 9]
    measured = slate.measure(batch)
    assert [simulator.name for simulator in slate.simulators] == ["claims", "examination"]
    for simulator in slate.simulators:
        pairs = zip(batch, slate.requests, strict=True)
        qualities = np.array([simulator.judge(*pair).quality for pair in pairs])
        assert qualities[0] > qualities[1] > 0
        for name, expected in zip(
            SIMULATED, (qualities, *simulator.clicks(qualities)), strict=True
        ):
            np.testing.assert_array_equal(measured[column(name, simulator.name)], expected)
    # Two audiences: other relevances, other draws, and the second position is examined less.
    assert not np.isin(slate.examination.draws, slate.claims.draws).any()
    second = np.array([position for *_, position in slate.triples]) == 2
    assert (slate.examination.examined[second] < 1).all()
    assert (slate.examination.examined[~second] == 1).all()


def test_rows_hold_what_both_simulators_measured(slate):
    batches = {0: [""] * 10, 4: [f"You may enjoy {r.about.title}." for r in slate.requests]}
    measured = {step: slate.measure(batch) for step, batch in batches.items()}
    rows = slate.rows(batches, measured)
    assert [(row["step"], row["user"], row["item"], row["position"]) for row in rows] == [
        (step, *triple) for step in batches for triple in slate.triples
    ]
    assert set(rows[0]) == {
        *("step", "user", "item", "position", "title", "categories", "history", "text"),
        *("quality", "propensity", "clicks"),
        *("quality_examination", "propensity_examination", "clicks_examination"),
    }
    for place, row in enumerate(rows[10:]):
        assert row["text"] == batches[4][place]
        for name in ("clicks", "quality_examination", "clicks_examination"):
            assert row[name] == measured[4][name][place]


def test_claims_are_looked_up_once_a_text(slate, monkeypatch):
    seen = []
    index = slate.claims.index
    spans = index.spans

    def counted(tokens, as_names=None):
        seen.append(tokens)
        return spans(tokens, as_names)

    monkeypatch.setattr(index, "spans", counted)
    slate.measure([f"text {'x' * place}" for place in range(10)])
    assert len(seen) == 10


def test_text_report_by_hand():
    measured = {"quality": np.array([0.5, 0.5, 0, 1]), "words": np.array([3, 3, 0, 1])}
    got = text_report(["One two three.", "One two three.", "", "Four!"], measured)
    assert got == {"words": 7 / 4, "quality": 0.5, "unique": 0.75, "empty": 0.25}


USERS = np.repeat([3, 8, 9, 12], 2)


def test_claim_precision_by_hand():
    """Six of eight claims supported, then nine of ten: claims are pooled, texts are not averaged."""
    before = {"claims": np.array([2, 1, 0, 1, 1, 1, 1, 1]), "supported": np.ones(8, int)}
    before["supported"][[2, 7]] = 0
    after = {"claims": np.array([2, 1, 1, 1, 1, 1, 1, 2]), "supported": np.ones(8, int)}
    after["supported"][7] = 2
    got = claim_report(before, after, USERS, SETTINGS, seed=0)
    assert got["precision_before"] == pytest.approx(6 / 8)
    assert got["precision_after"] == pytest.approx(9 / 10)
    assert got["change"] == pytest.approx(9 / 10 - 6 / 8)
    assert (got["named_before"], got["named_after"]) == (1.0, 1.25)
    assert got["change_low"] < got["change"] < got["change_high"]
    same = claim_report(before, before, USERS, SETTINGS, seed=0)
    assert (same["change"], same["change_low"], same["change_high"]) == (0, 0, 0)


def test_whole_users_are_drawn_for_claim_precision():
    """One user of four is wrong throughout: some resample misses the user, none halves them."""
    before = {"claims": np.ones(8, int), "supported": np.ones(8, int)}
    after = {"claims": np.ones(8, int), "supported": (USERS != 9).astype(int)}
    got = claim_report(before, after, USERS, SETTINGS, seed=0)
    assert got["change"] == -0.25
    assert got["change_high"] == 0
    assert {4 * got["change_low"] % 1, 4 * got["change_high"] % 1} == {0}


def test_texts_that_claim_nothing_have_no_precision():
    nothing = {"claims": np.zeros(8, int), "supported": np.zeros(8, int)}
    some = {"claims": np.ones(8, int), "supported": np.ones(8, int)}
    got = claim_report(some, nothing, USERS, SETTINGS, seed=0)
    assert (got["precision_before"], got["named_after"]) == (1.0, 0.0)
    assert got["precision_after"] is got["change"] is got["change_low"] is None


def test_kl_is_a_mean_since_the_snapshot_before():
    log = [{"step": step, "kl": kl} for step, kl in enumerate([0.2, 0.4, 0.1, 0.3, 0.8], start=1)]
    assert kl_between(log, [5, 0, 2]) == pytest.approx({0: 0.0, 2: 0.3, 5: 0.4})


ROW = '{"kl": 0.5, "step": %d}\n'


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "expected the rows of steps 1 to 2"),
        (ROW % 1, "expected the rows of steps 1 to 2"),
        (ROW % 1 + "[2]\n", "expected the rows of steps 1 to 2"),
        (ROW % 1 + '{"step": 2}\n', "step 2: expected a finite number under kl, got None"),
        (
            ROW % 1 + '{"kl": NaN, "step": 2}\n',
            "step 2: expected a finite number under kl, got nan",
        ),
        (ROW % 1 + '{"kl": "", "step": 2}\n', "step 2: expected a finite number under kl, got ''"),
        (ROW % 1 + '{"kl', "line 2: not valid JSON"),
        (b"\xff", "not UTF-8 text"),
        (None, "not a readable log"),
    ],
)
def test_a_log_that_cannot_be_evaluated_is_one_line(tmp_path, written, message):
    path = tmp_path / "train.jsonl"
    if written is not None:
        path.write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_log(path, 2)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_log(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(ROW % 1 + ROW % 2)
    assert load_log(path, 2) == [{"step": 1, "kl": 0.5}, {"step": 2, "kl": 0.5}]


def texts(quality, reward):
    spread = np.linspace(-0.01, 0.01, 8)
    return {"quality": quality + spread, "reward": reward + spread[::-1]}


@pytest.mark.parametrize(
    ("curve", "peak", "found"),
    [
        # Both rise.
        ({0: (0.4, 0.4), 8: (0.5, 0.5), 16: (0.6, 0.6)}, 16, False),
        # Quality falls from the middle on, reward goes on rising.
        ({0: (0.4, 0.4), 8: (0.6, 0.5), 16: (0.3, 0.7)}, 8, True),
        # Both fall: training failed, the reward did not mislead.
        ({0: (0.4, 0.4), 8: (0.6, 0.5), 16: (0.3, 0.2)}, 8, False),
        # Worse than the base from the first step on.
        ({0: (0.6, 0.4), 8: (0.5, 0.5), 16: (0.4, 0.7)}, 0, True),
    ],
)
def test_gold_that_falls_while_the_proxy_rises_is_found(curve, peak, found):
    measured = {step: texts(*values) for step, values in curve.items()}
    got = overoptimisation(measured, USERS, SETTINGS, seed=0)
    assert (got["peak"], got["found"]) == (peak, found)
    assert got["gold_fall"] == pytest.approx(curve[peak][0] - curve[16][0])
    assert got["proxy_rise"] == pytest.approx(curve[16][1] - curve[peak][1])


def test_a_fall_within_its_interval_is_not_found():
    """Two users better, two worse by a little more: quality fell, but not clearly."""
    measured = {0: texts(0.5, 0.4), 8: texts(0.5, 0.6)}
    measured[8]["quality"] += np.repeat([0.3, -0.31, 0.2, -0.21], 2)
    got = overoptimisation(measured, USERS, SETTINGS, seed=0)
    assert got["peak"] == 0
    assert got["gold_fall_low"] < 0 < got["gold_fall"] < got["gold_fall_high"]
    assert got["proxy_rise_low"] > 0
    assert got["found"] is False
    json.dumps(got)


def test_the_proxy_is_the_total_reward_of_each_text(slate):
    """Each text is scored beside its own prompt and request."""

    def reward(prompts, responses, context):
        first = [
            len(text) + 100 * request.item for text, request in zip(responses, context, strict=True)
        ]
        click = [request.user / 100 for request in context]
        known = [
            request.about.title in prompt for prompt, request in zip(prompts, context, strict=True)
        ]
        return {
            "first": torch.tensor(first, dtype=torch.float32),
            "known": torch.tensor(known, dtype=torch.float32),
            "click": torch.tensor(click, dtype=torch.float32),
        }

    batch = [f"text {'x' * place}" for place in range(10)]
    got = rewarded(Composite([reward], {"first": 0.5, "known": -2.0}), batch, slate)
    items = [request.item for request in slate.requests]
    np.testing.assert_array_equal(
        got["reward"], [0.5 * (len(t) + 100 * i) - 2 for t, i in zip(batch, items, strict=True)]
    )
    # A component without a weight, such as the click model here, is read all the same.
    np.testing.assert_allclose(got["reward_click"], slate.users / 100, rtol=1e-6)
    assert got["reward"].dtype == got["reward_click"].dtype == np.float64


def test_penalties_do_not_raise_the_ceiling():
    assert ceiling({"a": 0.5, "b": 0.25, "penalty": -0.5, "off": 0.0}) == 0.75


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


def served(world) -> tuple:
    serving = world.serving()
    people = np.concatenate([serving.roles.protected, serving.roles.heldout])
    rng = np.random.default_rng(2)
    shape = (len(people), serving.splits.n_items + 1)
    return serving, people, {0: rng.normal(size=shape), 8: rng.normal(size=shape)}


def test_the_ranking_is_judged_on_heldout_users(world):
    serving, people, scores = served(world)
    metrics = people_metrics(serving, people, scores)
    states = load_states(world.ranker)
    alone = people_metrics(serving, people, {0: ranker_scores(states, people)})[0]
    heldout = np.isin(people, serving.roles.heldout)
    got = ranking_report(metrics, alone, heldout, SETTINGS, seed=0)
    users = people[heldout]
    masks = [serving.splits.relevant_mask("test", users), serving.splits.seen_mask("test", users)]
    by_hand = {step: ranking_metrics(matrix[heldout], *masks) for step, matrix in scores.items()}
    assert got["served_before"] == pytest.approx(
        {"ndcg@10": by_hand[0].ndcg.mean(), "hr@10": by_hand[0].hr.mean()}
    )
    assert got["served_after"]["ndcg@10"] == pytest.approx(by_hand[8].ndcg.mean())
    change = by_hand[8].ndcg.mean() - by_hand[0].ndcg.mean()
    assert got["ndcg_change"]["mean"] == pytest.approx(change)
    assert got["ndcg_change"]["low"] < change < got["ndcg_change"]["high"]
    products = states.test_users[users].astype(float) @ states.items.T.astype(float)
    assert got["ranker"]["ndcg@10"] == pytest.approx(ranking_metrics(products, *masks).ndcg.mean())


def test_every_user_has_a_row(world):
    serving, people, scores = served(world)
    metrics = people_metrics(serving, people, scores)
    table = users_table(serving, people, metrics)
    assert table.schema == {
        "user": pl.Int32,
        "role": pl.String,
        **dict.fromkeys(("ndcg_before", "ndcg_after", "hr_before", "hr_after"), pl.Float64),
    }
    assert table["user"].to_list() == people.tolist()
    roles = dict(table.select("user", "role").iter_rows())
    assert {u for u, role in roles.items() if role == "protected"} == set(serving.roles.protected)
    assert {u for u, role in roles.items() if role == "heldout"} == set(serving.roles.heldout)
    assert table["ndcg_before"].to_list() == metrics[0].ndcg.tolist()
    assert table["hr_after"].to_list() == metrics[8].hr.tolist()
    assert not table["ndcg_before"].equals(table["ndcg_after"])


def test_snapshots_are_read_in_order(tmp_path):
    path = tmp_path / "snapshots.safetensors"
    tensors = {f"step-{step:06d}/a.b": np.full(2, step, "f4") for step in (12, 4, 100)}
    save_file(tensors, path)
    got = load_snapshots(path)
    assert list(got) == [4, 12, 100]
    assert got[12]["a.b"].tolist() == [12, 12]


def test_a_file_without_snapshots_is_one_line(tmp_path):
    save_file({}, tmp_path / "empty")
    with pytest.raises(UserError, match="no snapshot"):
        load_snapshots(tmp_path / "empty")
    with pytest.raises(UserError, match="not a readable"):
        load_snapshots(tmp_path / "none")


@pytest.mark.parametrize("key", ["weight", "step-four/a.b", "step-000004", "4/a.b"])
def test_a_key_that_is_no_snapshot_is_one_line(tmp_path, key):
    save_file({key: np.zeros(2)}, tmp_path / "other")
    with pytest.raises(UserError, match=f"got '{key}'; train the run again") as caught:
        load_snapshots(tmp_path / "other")
    assert str(tmp_path / "other") in str(caught.value)


def test_a_snapshot_is_put_into_the_adapter(world):
    model = load_adapter(load_base(world.base, "fp32", CPU), world.adapter)
    weights = {name: np.full(w.shape, 0.5, "f4") for name, w in adapter_parameters(model).items()}
    path = world.base / "snapshots.safetensors"
    check_snapshots({4: weights}, model, path)
    first = min(weights)
    # One row would be copied to all rows.
    for wrong in ({first: weights[first]}, weights | {first: weights[first][:1]}):
        with pytest.raises(UserError, match="step 8 is no snapshot of this run's adapter"):
            check_snapshots({4: weights, 8: wrong}, model, path)
    set_adapter(model, weights)
    assert all((weight == 0.5).all() for weight in adapter_parameters(model).values())
