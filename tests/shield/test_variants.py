"""From settings to a shield: files that do not belong to the run, and a ranking without the LM."""

import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.lm import adapter_parameters, load_adapter
from shielded_recrl.shield.bases import collect_bases
from shielded_recrl.shield.ranking_shield import ranker_bases
from shielded_recrl.shield.serving import RankingHead, ReadOut, load_states
from shielded_recrl.shield.settings import ShieldSettings
from shielded_recrl.shield.variants import load_shield

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def serving(world):
    return world.serving()


@pytest.fixture(scope="module")
def prefixes(serving):
    return [serving.prefix(user) for user in serving.roles.protected]


@pytest.fixture
def model(world):
    return load_adapter(load_base(world.base, "fp32", CPU), world.adapter, trainable=True)


@pytest.fixture
def head(world):
    """A ranking that reads the LM by some gamma."""
    states = load_states(world.ranker)
    weight = torch.randn(states.items.shape[1], 32, generator=torch.Generator().manual_seed(0))
    return lambda gamma: RankingHead.of(states, ReadOut(weight.numpy(), gamma))


def collected(world, prompts, path, **options):
    collect_bases(load_base(world.base, "fp32", CPU), prompts, **options).save(path)
    return path


def settings(**changes) -> ShieldSettings:
    return ShieldSettings(**{"scope": "all", "energy": 0.9, "penalty": 0.0} | changes)


def one_step(shield, model):
    optimizer = torch.optim.Adam(adapter_parameters(model).values(), lr=1e-2)
    shield.attach(model)
    shield.hook(optimizer)
    ids = torch.arange(3, 15)[None]
    model(ids, labels=ids).loss.backward()
    optimizer.step()


def test_without_gamma_there_is_no_penalty(world, serving, prefixes, model, head, tmp_path):
    """Validation may choose gamma 0: the ranking then does not read the LM, and cannot drift."""
    bases = collected(world, prefixes, tmp_path / "bases", energy=0.9)
    got = load_shield(settings(penalty=5.0), model, serving, head(0.0), bases, 0)
    one_step(got, model)
    assert got.penalty is None
    assert got.leakage() < 1e-6
    alone = settings(kind="none", penalty=5.0)
    assert load_shield(alone, model, serving, head(0.0), None, 0) is None
    with_gamma = load_shield(alone, model, serving, head(0.5), None, 0)
    with_gamma.attach(model)
    assert with_gamma.penalty is not None


@pytest.mark.parametrize("kind", ["separate", "activated"])
def test_nothing_acts_where_the_ranking_cannot_move(serving, model, kind):
    assert load_shield(settings(kind=kind, penalty=5.0), model, serving, None, None, 0) is None


def test_the_ranker_shield_needs_no_gamma(serving, model, head):
    expected = ranker_bases(model, head(0.5), energy=0.9)
    got = load_shield(settings(kind="ranker", penalty=5.0), model, serving, head(0.0), None, 0)
    ours, theirs = (shield.bases["hidden"] for shield in (got.bases, expected))
    assert ours.rank == theirs.rank
    torch.testing.assert_close(ours.inside(torch.eye(32)), theirs.inside(torch.eye(32)))
    one_step(got, model)
    assert got.leakage() < 1e-6


@pytest.mark.parametrize("kind", ["nullspace", "random"])
@pytest.mark.parametrize(
    ("made", "asked", "says"),
    [
        ({"energy": 0.9}, {"energy": 0.95}, r"energy 0\.9, but shield\.energy is 0\.95"),
        ({"energy": 0.9}, {"rank": 3}, r"rank None, but shield\.rank is 3"),
        ({"rank": 3}, {"rank": 4}, r"rank 3, but shield\.rank is 4"),
        ({"rank": 3}, {"energy": 0.999}, r"rank 3, but shield\.rank is None"),
        ({"energy": 0.9}, {"weight": "score"}, r"weight plain, but shield\.weight is score"),
    ],
)
def test_bases_of_other_settings_are_refused(
    world, serving, prefixes, model, tmp_path, kind, made, asked, says
):
    path = collected(world, prefixes, tmp_path / "bases", **made)
    with pytest.raises(UserError, match=says) as caught:
        load_shield(settings(kind=kind, **asked), model, serving, None, path, 0)
    assert str(caught.value).startswith(f"{path}: its bases have ")
    assert "\n" not in str(caught.value)


def test_a_rank_overrides_the_energy(world, serving, prefixes, model, tmp_path):
    path = collected(world, prefixes, tmp_path / "bases", rank=3, energy=0.5)
    got = load_shield(settings(rank=3, energy=0.9), model, serving, None, path, 0)
    assert {basis.rank for basis in got.bases.bases.values()} == {3}


def test_bases_of_other_users_are_refused(world, serving, prefixes, model, tmp_path):
    path = collected(world, prefixes[:-1], tmp_path / "bases", energy=0.9)
    with pytest.raises(UserError, match="of other prompts than these protected users'") as caught:
        load_shield(settings(), model, serving, None, path, 0)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
