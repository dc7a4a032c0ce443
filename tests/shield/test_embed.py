"""Prefixes of the read-out: whose they are, and states that shards give to the bit."""

from dataclasses import replace

import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer import base
from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.lm import prefix_states
from shielded_recrl.files import read_json
from shielded_recrl.shards import Shard
from shielded_recrl.shield import embed as module
from shielded_recrl.shield import readout
from shielded_recrl.shield.embed import (
    POSITIONS,
    Needs,
    embed,
    next_item_examples,
    validation_users,
)
from shielded_recrl.shield.settings import EmbedSettings, RankingSettings
from tiny_world import call

CPU = torch.device("cpu")


def needs_of(world, **settings) -> Needs:
    chosen = EmbedSettings(**world.roles.model_dump(), **settings)
    return Needs.of(world.serving(), chosen, world.roles_seed)


def test_examples_come_from_train_histories_of_train_users(world):
    needs, expected = needs_of(world), []
    serving = needs.serving
    for user in serving.roles.train:
        items = serving.splits.train[user].tolist()
        expected += items[1:][-POSITIONS:]
    assert needs.targets == expected
    count, prefix = needs.prefixes()["examples"]
    assert count == len(expected)
    items = serving.splits.train[serving.roles.train[0]].tolist()
    assert prefix(0) == serving.prompts.prefix(items[:1])[0]
    assert prefix(1) == serving.prompts.prefix(items[:2])[0]


def test_long_histories_give_their_end(world, monkeypatch):
    monkeypatch.setattr(module, "POSITIONS", 2)
    needs = needs_of(world)
    serving = needs.serving
    first = serving.splits.train[serving.roles.train[0]].tolist()
    assert needs.targets[:2] == first[-2:]
    assert needs.prefixes()["examples"].at(1) == serving.prompts.prefix(first[:-1])[0]
    assert len(needs.targets) == 2 * len(serving.roles.train)


def test_of_too_many_examples_or_users_a_seeded_few_are_drawn(world):
    serving = world.serving()

    def drawn(examples: int, seed: int) -> list[tuple[int, int]]:
        return list(zip(*next_item_examples(serving, examples, seed), strict=True))

    few = [drawn(9, seed) for seed in (0, 0, 1)]
    assert len(few[0]) == 9
    assert set(few[0]) <= set(drawn(10_000, 0))
    assert few[0] == few[1] != few[2]

    users = [validation_users(serving, 5, seed).tolist() for seed in (0, 0, 1)]
    assert users[0] == users[1] != users[2]
    assert len(users[0]) == 5
    assert not set(users[0]) & set(serving.roles.heldout.tolist())


def test_without_validation_users_or_examples_the_error_says_so(world):
    serving = world.serving()
    everybody = replace(serving.roles, heldout=serving.splits.evaluable("valid"))
    with pytest.raises(UserError, match="nobody is left to choose gamma"):
        validation_users(replace(serving, roles=everybody), 5, seed=0)
    nobody = replace(serving.roles, train=serving.roles.train[:0])
    with pytest.raises(UserError, match="no next item"):
        next_item_examples(replace(serving, roles=nobody), 5, seed=0)


def test_validation_and_held_out_users_are_embedded_before_their_splits(world):
    needs = needs_of(world)
    serving, model = needs.serving, load_base(world.base, "fp32", CPU)
    states = embed(model, needs.prefixes())
    for name, users, split in (
        ("validation", needs.validation, "valid"),
        ("heldout", serving.roles.heldout, "test"),
    ):
        expected = prefix_states(model, [serving.prefix(user, split) for user in users])
        assert torch.equal(states[name], expected)


def test_a_shard_tokenises_its_own_prefixes_only(world, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    needs, asked = needs_of(world), []
    prefixes = needs.prefixes()
    watched = {
        name: some._replace(at=lambda place, at=some.at: asked.append(place) or at(place))
        for name, some in prefixes.items()
    }
    states = embed(load_base(world.base, "fp32", CPU), watched, Shard(1, 8))
    assert (
        len(asked) == sum(map(len, states.values())) < sum(s.count for s in prefixes.values()) / 4
    )


# Shards


def inputs(world) -> dict:
    return {
        **{"data": world.data, "base": world.base, "templates": world.templates},
        **{"prompt": world.prompt, "seed": world.roles_seed},
    }


def fit(world, out, parts=(), **changes) -> bytes:
    settings = RankingSettings(**world.roles.model_dump() | {"epochs": 2} | changes)
    path = out / "readout.safetensors"
    given = inputs(world) | {"ranker": world.ranker, "parts": parts}
    call(readout.main, **given, out=path, settings=settings)
    return path.read_bytes() + path.with_suffix(".json").read_bytes()


def embedded(world, out, index: int, shards: int):
    part = out / f"shard-{index}-of-{shards}"
    settings = EmbedSettings(**world.roles.model_dump())
    call(module.main, **inputs(world), settings=settings, out=part, shard=index, shards=shards)
    return part


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_the_number_of_shards_changes_no_byte(world, tmp_path, monkeypatch, shards):
    monkeypatch.setattr(module, "CHUNK", 7)
    whole = fit(world, tmp_path / "whole")
    parts = tuple(embedded(world, tmp_path, index, shards) for index in range(shards))
    kinds = [set(read_json(part / "index.json")["part"]["tensors"]) for part in parts]
    assert sum("examples" in found for found in kinds) == shards
    assert sum("heldout" in found for found in kinds) == 1
    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("the LM runs in the shards"))
    assert fit(world, tmp_path / "joined", parts[::-1]) == whole


def test_without_prefixes_of_its_own_a_shard_needs_no_lm(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("the LM was loaded"))
    part = embedded(world, tmp_path, 0, 8)
    assert [path.name for path in part.iterdir()] == ["index.json"]
    assert capsys.readouterr().out == f"{part}: 0 of 109 prefixes\n"


def test_parts_of_other_settings_are_refused(world, tmp_path):
    parts = [embedded(world, tmp_path, index, 8) for index in range(2)]
    for changes in ({"examples": 9}, {"heldout_users": 3}):
        with pytest.raises(UserError, match="made from other inputs or with other settings"):
            fit(world, tmp_path, parts, **changes)
    with pytest.raises(UserError, match="shard 2 of 8 is missing"):
        fit(world, tmp_path, parts, epochs=3)
    assert not (tmp_path / "readout.safetensors").exists()
