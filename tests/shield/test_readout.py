"""The read-out finds what is there to be read, and gamma is chosen or obeyed."""

import numpy as np
import pytest
import torch

from shielded_recrl.files import read_json, sha256
from shielded_recrl.shield import readout
from shielded_recrl.shield.readout import POSITIONS, fit_readout, next_item_examples
from shielded_recrl.shield.serving import load_readout
from shielded_recrl.shield.settings import RankingSettings


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


def test_the_seed_decides_and_weight_decay_shrinks():
    _, embeddings, hidden, targets = planted()

    def fit(seed=0, decay=0.0):
        return fit_readout(hidden, targets, embeddings, weight_decay=decay, epochs=5, seed=seed)

    torch.manual_seed(1)
    first = fit()
    torch.manual_seed(2)
    assert torch.equal(first, fit())
    assert not torch.equal(first, fit(seed=1))
    assert fit(decay=5.0).norm() < first.norm()


def test_examples_come_from_train_histories_of_train_users(world):
    serving = world.serving()
    prefixes, targets = next_item_examples(serving)
    expected = []
    for user in serving.roles.train:
        items = serving.splits.train[user].tolist()
        expected += items[1:][-POSITIONS:]
    assert targets == expected
    assert len(prefixes) == len(targets)
    items = serving.splits.train[serving.roles.train[0]].tolist()
    assert prefixes[0] == serving.prompts.prefix(items[:1])[0]
    assert prefixes[1] == serving.prompts.prefix(items[:2])[0]


def run(world, out, **settings):
    readout.main(
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


def test_gamma_is_the_best_of_the_grid_on_validation(world, tmp_path):
    got, report = run(world, tmp_path, gammas=(0.0, 0.3, 3.0))
    curve = {row["gamma"]: row["ndcg@10"] for row in report["served"]}
    assert set(curve) == {0.0, 0.3, 3.0}
    assert got.gamma == report["gamma"]
    assert curve[got.gamma] == max(curve.values())
    assert report["chosen_on"] == "validation"
    assert report["sasrec_alone"] == curve[0.0]
    assert got.weight.shape == (8, 32)
    # Held-out users have no say in gamma.
    assert report["users"] == 24 - world.roles.heldout_users


def test_a_fixed_gamma_is_obeyed_and_a_rerun_gives_the_same_bytes(world, tmp_path):
    got, report = run(world, tmp_path / "a", gamma=0.7)
    assert got.gamma == report["gamma"] == np.float64(0.7)
    assert report["chosen_on"] == "config"
    assert 0.7 in {row["gamma"] for row in report["served"]}
    run(world, tmp_path / "b", gamma=0.7)
    for name in ("readout.safetensors", "readout.json"):
        assert sha256(tmp_path / "a" / name) == sha256(tmp_path / "b" / name)
