"""Documents of shards: they are joined in order, and refused where they are not one whole."""

import json

import pytest

from shielded_recrl.errors import UserError
from shielded_recrl.json_parts import JsonPart, read_parts, write_part
from shielded_recrl.shards import Label

OWNER = "a" * 64


class Names(JsonPart):
    names: list[str]


@pytest.fixture
def paths(tmp_path):
    """The documents of three of four shards, and then that of the fourth."""
    found = [tmp_path / f"shard-{index}-of-4.json" for index in range(4)]
    for index, path in enumerate(found):
        label = Label(made_from=OWNER, shard=index, shards=4, count=6)
        write_part(path, Names(label=label, device="cpu", names=[f"text {index}"] * (index % 3)))
    return found


def test_parts_come_in_the_order_of_their_shards(paths):
    parts = read_parts(paths[::-1], Names, OWNER)
    assert [part.label.shard for part in parts] == [0, 1, 2, 3]
    assert [part.names for part in parts] == [[], ["text 1"], ["text 2"] * 2, []]


def relabel(path, **changes):
    part = Names.model_validate(json.loads(path.read_text())["part"])
    device = changes.pop("device", part.device)
    label = part.label.model_copy(update=changes)
    write_part(path, part.model_copy(update={"label": label, "device": device}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"made_from": "b" * 64}, "other inputs"),
        ({"shards": 8}, "give the shards of one run"),
        ({"count": 7}, "give the shards of one run"),
        ({"shard": 1}, "give each once"),
        ({"device": "cuda"}, "another kind of machine"),
    ],
)
def test_a_part_of_something_else_is_one_line(paths, changes, message):
    relabel(paths[2], **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_parts(paths, Names, OWNER)
    assert str(paths[2]) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_missing_part_is_one_line(paths, left):
    with pytest.raises(UserError, match="shards") as caught:
        read_parts(paths[:left], Names, OWNER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("text 2", "text 3", "not what its job wrote"),
        ('"names": [', '"names": [0, ', "names"),
        ('"part"', '"port"', "expected the keys"),
        ("{", "[", "not valid JSON"),
    ],
)
def test_a_damaged_part_is_one_line(paths, old, new, message):
    text = paths[2].read_text()
    assert old in text
    paths[2].write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        read_parts(paths, Names, OWNER)
    assert str(paths[2]) in str(caught.value)
    assert "\n" not in str(caught.value)
