"""The read-out finds what is there to be read, and gamma is chosen or obeyed."""

import numpy as np
import pytest
import torch

from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.lm import prefix_states
from shielded_recrl.files import read_json, sha256
from shielded_recrl.ranker.metrics import ranking_metrics
from shielded_recrl.shield import readout
from shielded_recrl.shield.readout import (
    Choices,
    fit_readout,
    stacked_gamma,
    standardiser,
)
from shielded_recrl.shield.serving import load_readout, load_states
from shielded_recrl.shield.settings import RankingSettings
from tiny_world import call


def planted(n: int = 600, d: int = 6, d_r: int = 4, items: int = 30):
    """Next items drawn from softmax(W h . e) of a known W."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d_r, d, generator=generator)
    embeddings = torch.randn(items + 1, d_r, generator=generator)
    embeddings[0] = 100.0  # padding: would win every softmax it took part in
    hidden = torch.randn(n, d, generator=generator)
    logits = hidden @ weight.T @ embeddings[1:].T
    return (
        weight,
        embeddings,
        hidden,
        torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0] + 1,
    )


def test_a_planted_relation_is_recovered():
    weight, embeddings, hidden, targets = planted(n=4000)
    got = fit_readout(hidden, targets, embeddings, weight_decay=0.0, epochs=40, seed=0)
    cosine = torch.cosine_similarity(got.flatten(), weight.flatten(), dim=0)
    assert cosine > 0.98
    assert got.norm() == pytest.approx(weight.norm().item(), rel=0.1)


def test_the_fit_is_near_the_optimum():
    """A convex loss: a full-batch second-order method finds no better W."""
    _, embeddings, hidden, targets = planted()

    def loss(w):
        logits = hidden @ w.T @ embeddings[1:].T
        return torch.nn.functional.cross_entropy(logits, targets - 1)

    got = fit_readout(hidden, targets, embeddings, weight_decay=0.0, epochs=400, seed=0)
    best = torch.zeros_like(got, requires_grad=True)
    solver = torch.optim.LBFGS([best], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        value = loss(best)
        value.backward()
        return value

    solver.step(closure)
    assert loss(got).item() == pytest.approx(loss(best).item(), abs=0.02)
    assert loss(got) < 0.8 * loss(torch.zeros_like(got))


def test_the_seed_decides_and_the_penalty_shrinks():
    _, embeddings, hidden, targets = planted()

    def fit(seed=0, decay=0.0):
        return fit_readout(hidden, targets, embeddings, weight_decay=decay, epochs=5, seed=seed)

    torch.manual_seed(1)
    first = fit()
    torch.manual_seed(2)
    assert torch.equal(first, fit())
    assert not torch.equal(first, fit(seed=1))
    assert fit(decay=500.0).norm() < 0.8 * first.norm()


def test_a_large_constant_in_the_states_is_no_obstacle():
    """States as an LM has them at one token: most of their length is common to all users."""
    weight, embeddings, hidden, targets = planted(n=4000)
    spread = torch.tensor([3.0, 1.0, 0.3, 0.1, 0.03, 0.01])
    common = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 20.0])
    states = torch.cat([hidden * spread, torch.zeros(len(hidden), 1)], dim=1) + common
    got = fit_readout(states, targets, embeddings, weight_decay=1.0, epochs=40, seed=0)
    scores = (hidden @ weight.T, states @ got.T)
    wanted, fitted = ((s @ embeddings[1:].T).log_softmax(dim=1) for s in scores)
    assert torch.corrcoef(torch.stack([wanted.flatten(), fitted.flatten()]))[0, 1] > 0.98


def test_the_standardiser_gives_standard_states_and_a_constant():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 5, generator=generator) * torch.arange(1, 6)
    states[:, 0] = 7.0
    got = states @ standardiser(states).T
    assert got.shape == (500, 6)
    torch.testing.assert_close(got[:, -1], torch.ones(500), atol=1e-4, rtol=0)
    torch.testing.assert_close(got[:, 1:-1].mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(got[:, 1:-1].std(0), torch.ones(4), atol=1e-2, rtol=0)
    # What does not vary is no feature.
    assert got[:, 0].abs().max() < 1e-2


def choices(a: float, b: float, users: int = 3000, items: int = 30, seed: int = 0):
    """Two blocks of users who take items by softmax(a sasrec + b lm) among what is not excluded."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        shape = (users, items + 1)
        sasrec, lm = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        excluded = torch.rand(shape, generator=generator) < 0.2
        excluded[:, 0] = True
        logits = (a * sasrec + b * lm).masked_fill(excluded, -torch.inf)
        taken = torch.multinomial(logits.softmax(-1), 2, generator=generator)
        rows = torch.arange(users).repeat_interleave(2)
        yield Choices(sasrec, lm, excluded, rows, taken.flatten())


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.5), (0.5, 0.25), (0.6, 0.9)])
def test_gamma_is_the_ratio_of_the_weights_users_choose_by(a, b):
    assert stacked_gamma(lambda: choices(a, b), 2.0) == pytest.approx(b / a, rel=0.1)


def test_gamma_is_bounded_and_zero_where_the_lm_misleads():
    assert stacked_gamma(lambda: choices(1.0, -0.3), 2.0) == 0.0
    assert stacked_gamma(lambda: choices(0.2, 1.0), 2.0) == 2.0
    # SASRec that misleads leaves all to the LM.
    assert stacked_gamma(lambda: choices(-0.3, 1.0), 2.0) == 2.0


def run(world, out, **settings):
    call(
        readout.main,
        data=world.data,
        ranker=world.ranker,
        base=world.base,
        templates=world.templates,
        out=out / "readout.safetensors",
        prompt=world.prompt,
        settings=RankingSettings(**world.roles.model_dump(), epochs=3, **settings),
        seed=world.roles_seed,
    )
    return load_readout(out / "readout.safetensors"), read_json(out / "readout.json")


def test_the_report_shows_all_three_rankings_on_both_splits(world, tmp_path):
    got, report = run(world, tmp_path, gammas=(0.3, 3.0))
    curve = {row["gamma"]: row["ndcg@10"] for row in report["served"]}
    assert set(curve) == {0.0, 0.3, 3.0, got.gamma}
    assert 0.0 <= got.gamma == report["gamma"] <= 3.0
    assert report["chosen_on"] == "validation"
    assert report["sasrec_alone"] == curve[0.0]
    assert report["served_ndcg@10"] == curve[got.gamma]
    assert got.weight.shape == (8, 32)
    # Held-out users have no say in gamma, and are compared apart.
    assert report["users"] == 24 - world.roles.heldout_users
    assert report["heldout"]["users"] == world.roles.heldout_users
    for part in (report, report["heldout"]):
        gain = part["gain"]
        assert gain["mean"] == pytest.approx(part["served_ndcg@10"] - part["sasrec_alone"])
        assert gain["low"] <= gain["mean"] <= gain["high"]


def test_the_three_rankings_are_those_that_are_served(world, tmp_path):
    got, report = run(world, tmp_path, gamma=0.7)
    serving, states = world.serving(), load_states(world.ranker)
    users = serving.roles.heldout
    hidden = prefix_states(
        load_base(world.base, "fp32", torch.device("cpu")),
        [serving.prefix(user) for user in users],
    ).numpy()
    masks = (serving.splits.relevant_mask("test", users), serving.splits.seen_mask("test", users))
    sasrec, lm = states.test_users[users], hidden @ got.weight.T
    for key, vectors in {
        "sasrec_alone": sasrec,
        "lm_alone": lm,
        "served_ndcg@10": sasrec + 0.7 * lm,
    }.items():
        expected = ranking_metrics(vectors @ states.items.T, *masks).ndcg.mean()
        assert report["heldout"][key] == pytest.approx(expected)


def test_gamma_does_not_depend_on_the_block_size(world, tmp_path, monkeypatch):
    expected, _ = run(world, tmp_path / "a")
    monkeypatch.setattr(readout, "BLOCK", 3 * 21)
    got, _ = run(world, tmp_path / "b")
    assert got.gamma == pytest.approx(expected.gamma, abs=1e-6)


def test_a_fixed_gamma_is_obeyed_and_a_rerun_gives_the_same_bytes(world, tmp_path):
    got, report = run(world, tmp_path / "a", gamma=0.7)
    assert got.gamma == report["gamma"] == np.float64(0.7)
    assert report["chosen_on"] == "config"
    assert 0.7 in {row["gamma"] for row in report["served"]}
    run(world, tmp_path / "b", gamma=0.7)
    for name in ("readout.safetensors", "readout.json"):
        assert sha256(tmp_path / "a" / name) == sha256(tmp_path / "b" / name)
