"""Second moments that shards collect: the bases of one job, to the byte."""

import pytest
import torch
from safetensors.torch import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.explainer import base
from shielded_recrl.files import read_json
from shielded_recrl.json_parts import read_part, write_part
from shielded_recrl.shards import Shard
from shielded_recrl.shield import bases, collect, moments
from shielded_recrl.shield.moments import second_moments
from shielded_recrl.shield.parts import Index
from shielded_recrl.shield.settings import BasisSettings
from tiny_world import call, prompts, tiny_llama

ROWS = prompts(11, 2, 9, seed=1)
SETTINGS = {
    "energy": BasisSettings(energy=0.95),
    "rank": BasisSettings(rank=3),
    "complete": BasisSettings(energy=1.0),
    "score": BasisSettings(energy=0.95, weight="score"),
}


@pytest.fixture(autouse=True)
def chunks_of_two(monkeypatch):
    """Five protected users make three chunks."""
    for module in (moments, collect):
        monkeypatch.setattr(module, "CHUNK", 2)


@pytest.fixture(scope="module")
def readout(tmp_path_factory):
    path = tmp_path_factory.mktemp("readout") / "readout.safetensors"
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight, "gamma": torch.tensor(0.0)}, path)
    return path


def inputs(world, readout, settings: BasisSettings) -> dict:
    ranking = {"readout": readout, "ranker": world.ranker} if settings.weight == "score" else {}
    return {
        **{"data": world.data, "base": world.base, "templates": world.templates},
        **{"prompt": world.prompt, "roles": world.roles, "seed": world.roles_seed},
        **ranking,
    }


def spanned(world, readout, out, settings: BasisSettings, parts=()) -> bytes:
    call(bases.main, **inputs(world, readout, settings), out=out, settings=settings, parts=parts)
    return out.read_bytes()


def collected(world, readout, out, settings: BasisSettings, index: int, shards: int):
    part = out / f"shard-{index}-of-{shards}"
    given = inputs(world, readout, settings) | {"settings": settings.moments}
    call(collect.main, **given, out=part, shard=index, shards=shards)
    return part


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        *(("energy", 1), ("energy", 2), ("energy", 4), ("energy", 8)),
        *(("rank", 2), ("complete", 4), ("score", 2), ("score", 4)),
    ],
)
def test_the_number_of_shards_changes_no_byte(world, readout, tmp_path, monkeypatch, name, shards):
    settings = SETTINGS[name]
    whole = spanned(world, readout, tmp_path / "whole.safetensors", settings)
    parts = [
        collected(world, readout, tmp_path, settings, index, shards) for index in range(shards)
    ]
    used = sum(bool(read_json(part / "index.json")["part"]["tensors"]) for part in parts)
    assert used == min(shards, 3)
    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("the LM runs in the shards"))
    joined = tmp_path / "joined.safetensors"
    assert spanned(world, readout, joined, settings, tuple(parts[::-1])) == whole


def test_bases_that_differ_in_their_cut_share_moments(world, readout, tmp_path):
    loose, tight = (BasisSettings(energy=energy) for energy in (0.9, 0.99))
    parts = tuple(collected(world, readout, tmp_path, loose, index, 2) for index in range(2))
    for settings in (loose, tight):
        whole = spanned(world, readout, tmp_path / "whole.safetensors", settings)
        assert spanned(world, readout, tmp_path / "joined.safetensors", settings, parts) == whole


@pytest.mark.parametrize("layers", [1, 2])
def test_a_part_is_what_the_whole_adds_up(layers):
    """Sums of the halves, in any window of layers, and rows in their order."""
    model = tiny_llama(layers=2)
    for window in range(0, 2, layers):
        indices = range(window, window + layers)
        whole, groups = second_moments(model, ROWS, indices)
        halves = [second_moments(model, ROWS, indices, shard=Shard(i, 2)) for i in range(2)]
        assert [found for _, found in halves] == [groups, groups]
        for group, moment in whole.items():
            left, right = (half[group].held() for half, _ in halves)
            assert torch.equal(moment.joined(left, right), moment.held())


def test_few_rows_are_kept_by_all_shards_or_by_none():
    """By the number of all prompts, though one shard alone has fewer."""
    model = tiny_llama(width=32)
    rows = prompts(17, 2, 4, seed=3)
    kinds = {
        shard: {
            group: m.rows is None
            for group, m in second_moments(model, rows, [1], shard=shard)[0].items()
        }
        for shard in (Shard(), Shard(0, 8), Shard(7, 8))
    }
    assert len(set(map(str, kinds.values()))) == 1
    assert set(kinds[Shard()].values()) == {True, False}


@pytest.fixture
def pair(world, readout, tmp_path):
    settings = SETTINGS["energy"]
    return [collected(world, readout, tmp_path, settings, index, 2) for index in range(2)]


def refused(world, readout, tmp_path, parts, settings=SETTINGS["energy"]) -> str:
    out = tmp_path / "bases.safetensors"
    with pytest.raises(UserError) as caught:
        spanned(world, readout, out, settings, tuple(parts))
    assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_parts_that_do_not_fit_are_one_line(world, readout, tmp_path, pair):
    first, second = pair
    assert "shard 1 of 2 is missing" in refused(world, readout, tmp_path, [first])
    complete = refused(world, readout, tmp_path, pair, SETTINGS["complete"])
    assert f"{first}: made from other inputs or with other settings" in complete
    index = read_part(second / "index.json", Index)
    write_part(second / "index.json", index.model_copy(update={"device": "cuda"}))
    assert f"{second}: made on another kind" in refused(world, readout, tmp_path, pair)


def test_damaged_parts_are_one_line(world, readout, tmp_path, pair):
    tensors, index = pair[1] / "0000.safetensors", pair[0] / "index.json"
    content = bytearray(tensors.read_bytes())
    content[-9] ^= 1
    tensors.write_bytes(content)
    assert f"{tensors}: damaged" in refused(world, readout, tmp_path, pair)
    tensors.unlink()
    assert f"{tensors}: not a readable" in refused(world, readout, tmp_path, pair)
    flipped = index.read_text().replace('"shard": 0', '"shard": 1')
    for text, what in ((flipped, "not what its job wrote"), ("{", "not valid JSON")):
        index.write_text(text)
        assert what in refused(world, readout, tmp_path, pair)
    index.unlink()
    assert f"{index}: no such file" in refused(world, readout, tmp_path, pair)


def test_without_prefixes_of_its_own_a_shard_needs_no_lm(
    world, readout, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("the LM was loaded"))
    part = collected(world, readout, tmp_path, SETTINGS["energy"], 0, 8)
    assert [path.name for path in part.iterdir()] == ["index.json"]
    assert capsys.readouterr().out == f"{part}: 0 of 5 protected prefixes\n"
