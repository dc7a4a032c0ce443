"""Texts dealt to shards: the same users, numbers, scores and texts, however many there are."""

import numpy as np
import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.lm import adapter_parameters
from shielded_recrl.rl.evaluation import generation, ranking
from shielded_recrl.rl.evaluation.generation import Text, by_step, generate, groups
from shielded_recrl.rl.evaluation.ranking import Served
from shielded_recrl.rl.evaluation.slate import top_triples
from shielded_recrl.rl.settings import SamplingSettings
from shielded_recrl.shards import Shard
from shielded_recrl.shield.serving import ReadOut, load_states
from tiny_world import RANKER_WIDTH, with_adapter

CPU = torch.device("cpu")
LONGEST = 6


@pytest.mark.parametrize(("count", "per_user"), [(1, 2), (13, 2), (16, 3), (9, 40)])
def test_shards_share_users_and_numbers_of_the_whole(monkeypatch, count, per_user):
    monkeypatch.setattr(generation, "GENERATION_BATCH", 8)
    users = np.arange(5, 5 + count)
    whole = list(groups(users, per_user, LONGEST, 7))
    assert np.concatenate([group.users for group in whole]).tolist() == users.tolist()
    assert max(len(group.users) for group in whole) <= max(1, 8 // per_user)
    # The numbers are those of one draw for all.
    once = torch.rand(
        (count, per_user, LONGEST),
        generator=torch.Generator().manual_seed(7),
        dtype=torch.float64,
    )
    assert torch.equal(torch.cat([group.uniforms for group in whole]), once)
    for shards in (2, 4, 16):
        dealt = [
            group
            for index in range(shards)
            for group in groups(users, per_user, LONGEST, 7, Shard(index, shards))
        ]
        assert [group.users.tolist() for group in dealt] == [
            group.users.tolist() for group in whole
        ]
        assert torch.equal(torch.cat([group.uniforms for group in dealt]), once)


@pytest.fixture
def served(world, monkeypatch):
    """Scores in blocks of four, of which held-out users begin within one."""
    monkeypatch.setattr(ranking, "BLOCK", 4)
    serving = world.serving()
    weight = np.random.default_rng(0).normal(size=(RANKER_WIDTH, 32)).astype("f4")
    return Served(serving, load_states(world.ranker), ReadOut(weight, 0.5))


def test_scores_of_some_users_are_those_of_all(world, served):
    model = load_base(world.base, "fp32", CPU)
    whole = served(model)
    heldout = served.serving.roles.heldout
    assert served.people[served.rows(heldout)].tolist() == heldout.tolist()
    for users in (heldout, heldout[2:5], heldout[[0, 6]], heldout[-1:]):
        rows = served.rows(users)
        np.testing.assert_array_equal(served(model, rows), whole[rows])


def test_texts_of_shards_are_those_of_the_whole(world, served, monkeypatch):
    monkeypatch.setattr(generation, "GENERATION_BATCH", 4)
    model = with_adapter(load_base(world.base, "fp32", CPU), moved=0.3)
    trained = {name: w.detach().numpy().copy() for name, w in adapter_parameters(model).items()}
    snapshots = {1: {name: w * 2 for name, w in trained.items()}, 3: trained}
    serving = served.serving
    heldout = serving.roles.heldout

    def slates(users):
        with model.disable_adapter():
            return top_triples(serving, users, served(model, served.rows(users)), 2)

    def texts(shard):
        asked = groups(heldout, 2, LONGEST, 7, shard)
        return generate(model, serving, snapshots, slates, asked, SamplingSettings())

    whole = texts(Shard())
    triples = slates(heldout)
    told = by_step(whole, triples, (0, 1, 3))
    assert [len(rows) for rows in told.values()] == [14, 14, 14]
    assert told[0] != told[1] != told[3] != told[0]
    for shards in (2, 4, 8):
        parts = [texts(Shard(index, shards)) for index in range(shards)]
        assert [text for part in parts for text in part] == whole
        assert sum(not part for part in parts) == max(0, shards - 4)


def test_texts_of_another_slate_are_one_line():
    texts = [Text(0, 5, 9, 1, "a"), Text(2, 5, 9, 1, "b")]
    assert by_step(texts, [(5, 9, 1)], (0, 2)) == {0: ["a"], 2: ["b"]}
    for triples, steps in (([(5, 8, 1)], (0, 2)), ([(5, 9, 1)], (0, 2, 4)), ([], (0, 2))):
        with pytest.raises(UserError, match="machines of one kind") as caught:
            by_step(texts, triples, steps)
        assert "\n" not in str(caught.value)
