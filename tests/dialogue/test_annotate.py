"""Emotions of the turns of prepared dialogues."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import here
from shielded_recrl.dialogue.corpus.dialogues import SCHEMAS
from shielded_recrl.dialogue.emotion import lexicon
from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.emotion.turns import annotate, kept, load_emotions
from shielded_recrl.dialogue.settings import AnnotateSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import SEAL, sealed

TURNS = [
    (0, 0, "seeker", "Hi! What kind of movies do you like?"),
    (0, 1, "recommender", "<movie>"),
    (0, 2, "seeker", "I loved it, thank you!"),
    (1, 0, "recommender", "It is on channel four."),
    (1, 1, "seeker", "<movie> was not good."),
]
MENTIONS = [(0, 1, 0, 1, False), (1, 1, 0, 1, False)]


@pytest.fixture
def data(tmp_path):
    """Prepared tables of two dialogues."""
    rows = {
        "dialogues": [(0, "a", "train"), (1, "b", "test")],
        "turns": TURNS,
        "mentions": MENTIONS,
        "feedback": [],
        "items": [(1, ["7"], "Heat", 1995, ["Crime"], 1)],
    }
    folder = tmp_path / "data"
    for name, found in rows.items():
        table = pl.DataFrame(found, schema=SCHEMAS[name], orient="row")
        with sealed(folder / f"{name}.parquet") as partial:
            table.write_parquet(partial, metadata=SEAL)
    return folder


def labelled(data, out, *more):
    return here("dialogue", "annotate", "--data", data, "--out", out, *more)


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        load_emotions(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_turn_has_its_emotions(data, tmp_path):
    out = tmp_path / "turns.parquet"
    done = labelled(data, out, "--source", "lexicon")
    assert done.returncode == 0, done.stderr
    found = load_emotions(out)
    assert list(found) == [row[:2] for row in TURNS]
    assert found[0, 0][0][0] == "curious"
    assert [name for name, _ in found[0, 2]] == ["like", "grateful", "neutral"]
    assert [share for _, share in found[0, 2]] == pytest.approx([0.4, 0.4, 0.2])
    assert found[1, 0] == [("neutral", 1.0)]
    assert found[1, 1][0][0] == "negative"
    assert "5 turns by the lexicon" in done.stdout


def test_a_turn_of_films_only_has_none(data, tmp_path):
    out = tmp_path / "turns.parquet"
    labelled(data, out, "--source", "lexicon")
    assert load_emotions(out)[0, 1] == []


def test_equal_inputs_give_equal_bytes(data, tmp_path):
    files = [tmp_path / name for name in ("one.parquet", "two.parquet")]
    for file in files:
        labelled(data, file, "--source", "lexicon")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_higher_bound_may_leave_none():
    texts = ["Thanks, I hate it"]
    bound = AnnotateSettings(threshold=0.4)
    assert annotate(texts, lexicon.probabilities, bound) == [[]]
    three = annotate(texts, lexicon.probabilities, AnnotateSettings())[0]
    assert [name for name, _ in three] == ["grateful", "negative", "neutral"]


def test_of_equal_emotions_the_first_is_first():
    # Four are as likely: the first three are kept.
    row = np.array([[0.0, 0.25, 0.0, 0.25, 0.25, 0.0, 0.25, 0.0, 0.0]])
    assert [EMOTIONS[place] for place in kept(row, AnnotateSettings())[0]] == [
        "curious",
        "grateful",
        "negative",
    ]


@given(st.lists(st.floats(0.001, 1), min_size=9, max_size=9))
def test_one_to_three_emotions_above_the_bound_descending(weights):
    row = np.array([weights]) / sum(weights)
    (places,) = kept(row, AnnotateSettings())
    chosen = row[0][places]
    assert 1 <= len(places) <= 3
    assert (chosen > 0.1).all()
    assert (np.diff(chosen) <= 0).all()
    assert np.delete(row[0], places).max() <= max(0.1, chosen.min())


def test_classifier_or_none(data, tmp_path):
    out = tmp_path / "turns.parquet"
    done = labelled(data, out)
    assert done.returncode
    assert "--source lexicon" in done.stderr
    done = labelled(data, out, "--model", tmp_path)
    assert done.returncode
    assert "model.safetensors: no such file" in done.stderr
    assert not out.exists()


def test_a_damaged_file_is_refused(data, tmp_path):
    out = tmp_path / "turns.parquet"
    assert "no such file" in refused(out)
    labelled(data, out, "--source", "lexicon")
    whole = out.read_bytes()
    flipped = bytearray(whole)
    flipped[20] ^= 1
    for damaged in (bytes(flipped), whole[:-9], b"PAR1"):
        out.write_bytes(damaged)
        assert str(out) in refused(out)


@pytest.mark.parametrize(
    "column",
    [
        pl.lit(["joy"], pl.List(pl.String)).alias("emotions"),
        pl.lit([0.5, 0.2], pl.List(pl.Float32)).alias("probabilities"),
        pl.lit(None, pl.List(pl.String)).alias("emotions"),
    ],
    ids=["an unknown emotion", "another number of shares", "no list"],
)
def test_a_file_of_another_kind_is_refused(column, data, tmp_path):
    out = tmp_path / "turns.parquet"
    labelled(data, out, "--source", "lexicon")
    table = pl.read_parquet(out).with_columns(column)
    table.filter(pl.col("turn") == 0).write_parquet(out)
    assert "annotate" in refused(out)
