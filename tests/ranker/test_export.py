"""`ranker export`: the lists of the metrics, under the source's own ids."""

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.ranker import export

USERS = {"user": [1, 2, 3], "source_id": ["u-a", "u-b", "u-c"]}
ITEMS = {"item": [1, 2, 3, 4], "source_id": list("wxyz"), "title": ["W", "X", "Y", "Z"]}


@pytest.fixture
def folder(dataset):
    rows = [{"train": [1], "valid": [2], "test": [3]}, {"train": [4], "test": [1]}, {"test": [2]}]
    data = dataset(rows, n_items=4)
    pl.DataFrame(USERS, schema_overrides={"user": pl.Int32}).write_parquet(data / "users.parquet")
    pl.DataFrame(ITEMS, schema_overrides={"item": pl.Int32}).write_parquet(data / "items.parquet")
    items = np.array([[0], [4], [3], [2], [1]], dtype=np.float32)
    states = {"items": items, "test_users": np.array([[0], [1], [-2], [0]], dtype=np.float32)}
    save_file(states, data / "states.safetensors")
    return data


def test_lists_by_hand(folder, tmp_path):
    """User a had items 1 and 2; user b, whose taste is reversed, had 4; user c has no history."""
    export.main(data=folder, states=folder / "states.safetensors", out=tmp_path / "r.parquet", k=2)
    assert pl.read_parquet(tmp_path / "r.parquet").rows() == [
        ("u-a", 1, "y", "Y", 2.0),
        ("u-a", 2, "z", "Z", 1.0),
        ("u-b", 1, "y", "Y", -4.0),
        ("u-b", 2, "x", "X", -6.0),
    ]


def test_a_list_ends_with_the_catalogue(folder, tmp_path):
    export.main(data=folder, states=folder / "states.safetensors", out=tmp_path / "r.parquet", k=9)
    table = pl.read_parquet(tmp_path / "r.parquet")
    assert table.group_by("user_id", maintain_order=True).len()["len"].to_list() == [2, 3]


def test_errors_name_the_file(folder, tmp_path):
    states = folder / "states.safetensors"
    with pytest.raises(UserError, match="k: expected at least 1"):
        export.main(data=folder, states=states, out=tmp_path / "r.parquet", k=0)
    with pytest.raises(UserError, match=r"none\.safetensors: not the states of a ranker"):
        export.main(data=folder, states=tmp_path / "none.safetensors", out=tmp_path / "r.parquet")
    save_file({"items": np.zeros((3, 1)), "test_users": np.zeros((4, 1))}, states)
    with pytest.raises(UserError, match=r"3 users and 2 items, but .* has 3 and 4"):
        export.main(data=folder, states=states, out=tmp_path / "r.parquet")
    assert not (tmp_path / "r.parquet").exists()
