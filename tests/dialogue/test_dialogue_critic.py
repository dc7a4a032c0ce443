"""The command `critic`: it learns what judges said, and is refused where it does not."""

import numpy as np
import polars as pl
import pytest

from shielded_recrl.dialogue import critic as command
from shielded_recrl.dialogue.corpus.dialogues import Dialogues, Turn
from shielded_recrl.dialogue.critique.judged import columns, load_judged, save_judged
from shielded_recrl.dialogue.critique.model import Critic, context_text, new_encoder
from shielded_recrl.dialogue.critique.training import held_back
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, sha256
from tiny_judged import KINDS, SMALL, SPOILT, spoil_test, write_judged

CONTEXT = (Turn("seeker", "Hi! Any film like <movie> please?", (1,)),)


def train(folder, data, out="critic", encoder=None, seed=1, **changes):
    command.main(
        judged=folder / "judged.parquet",
        data=data,
        out=folder / out,
        report=folder / f"{out}.json",
        encoder=encoder,
        seed=seed,
        settings=SMALL.model_copy(update=changes),
    )
    return folder / out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with tables, and a critic that passed."""
    folder = tmp_path_factory.mktemp("critic")
    paths = write_judged(folder)
    train(folder, paths.data)
    return folder


def test_the_report_tells_what_was_learned(trained):
    report = read_json(trained / "critic.json")
    for head in HEADS:
        row = report["heads"][head]
        assert row["mse"] < row["mse_mean"]
        assert 0 < row["gain"]["low"] <= row["gain"]["mean"] <= row["gain"]["high"]
        assert row["gain"]["mean"] == pytest.approx(row["mse_mean"] - row["mse"])
    assert set(report["corruptions"]) == {"cut"}
    assert all(row["share"]["low"] > 0.5 for row in report["corruptions"].values())
    assert report["corruptions"]["cut"]["pairs"] == report["dialogues"]["valid"] * 2
    assert report["dialogues"] == {"taught": 71, "stop": 13, "valid": 12}
    assert report["rows"] == {
        name: count * 2 * len(KINDS) for name, count in report["dialogues"].items()
    }
    assert min(row["stop_loss"] for row in report["training"]) == pytest.approx(
        report["training"][report["epoch"] - 1]["stop_loss"]
    )
    assert report["learned_from"] == ["rules"]
    assert report["model"] == sha256(trained / "critic")


def test_the_encoder_is_trained_and_not_the_heads_alone(trained):
    table, dialogues = load_judged(trained / "judged.parquet"), Dialogues.load(trained / "data")
    train_rows = command.split_rows(table, dialogues, SMALL.judges, trained)["train"]
    rows, _ = held_back(train_rows, SMALL.stop_share, seed=1)
    texts = [context_text(context, SMALL.context_turns) for context in rows.contexts]
    untrained, _ = new_encoder([*texts, *rows.texts], SMALL, seed=1)
    critic = Critic.load(trained / "critic").learned.model
    before, after = (model.base_model.state_dict() for model in (untrained, critic))
    assert before.keys() == after.keys()
    weights = [name for name in before if before[name].ndim > 1]
    assert weights
    for name in weights:
        change = (after[name] - before[name]).norm() / before[name].norm()
        assert change > 0.01, name
    assert read_json(trained / "critic.json")["encoder_change"] > 0.01


def test_scores_follow_the_judge(trained):
    texts = ["Have you seen <movie>?", "You are welcome."]
    asked, thanked = Critic.load(trained / "critic")([CONTEXT] * 2, texts)
    assert (asked > thanked)[1:].all()


def files(folder):
    """Contents of what the command wrote."""
    model = {path.name: path.read_bytes() for path in (folder / "critic").iterdir()}
    return model | {"report": (folder / "critic.json").read_bytes()}


@pytest.mark.parametrize("how", SPOILT)
def test_no_line_of_the_test_split_is_read_and_the_same_seed_gives_the_same_bytes(
    trained, tmp_path, how
):
    paths = write_judged(tmp_path)
    spoil_test(paths, how)
    train(tmp_path, paths.data)
    assert files(tmp_path) == files(trained)


def test_the_valid_split_teaches_nothing(trained, tmp_path):
    paths = write_judged(tmp_path)
    table = load_judged(tmp_path / "judged.parquet")
    less = pl.when(split="valid").then(pl.col(columns("rules")) * 0.9)
    changed = table.with_columns(less.otherwise(pl.col(columns("rules"))))
    save_judged(tmp_path / "judged.parquet", changed)
    train(tmp_path, paths.data)
    before, after = files(trained), files(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"report"}


def test_shuffled_labels_stop_the_run(tmp_path):
    paths = write_judged(
        tmp_path, lambda scores, table: np.random.default_rng(0).permutation(scores)
    )
    with pytest.raises(UserError, match="no better than the mean on held-out dialogues") as caught:
        train(tmp_path, paths.data, epochs=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "critic").exists()
    assert not (tmp_path / "critic.json").exists()


def test_a_constant_head_is_one_line(tmp_path):
    def flat(scores, table):
        scores[:, 3] = 0.5
        return scores

    paths = write_judged(tmp_path, flat)
    with pytest.raises(UserError, match=r"engagement is 0\.5 for every response of train"):
        train(tmp_path, paths.data)


def test_a_fault_that_is_not_held_out_is_one_line(tmp_path):
    paths = write_judged(tmp_path)
    table = load_judged(tmp_path / "judged.parquet")
    of_valid = (pl.col("split") == "valid") & (pl.col("kind") == "corrupted:cut")
    save_judged(tmp_path / "judged.parquet", table.filter(~of_valid))
    with pytest.raises(UserError, match=r"no response of valid is corrupted:cut"):
        train(tmp_path, paths.data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judges": ("unseen",)}, "no critic may learn from it"),
        ({"judges": ("rules", "gpt")}, "has no judge 'gpt', only rules, unseen"),
        ({"heads": 3}, "3 does not divide hidden_size 32"),
    ],
)
def test_what_cannot_be_trained_is_one_line(trained, changes, message):
    with pytest.raises(UserError, match=message):
        train(trained, trained / "data", out="refused", **changes)
    assert not (trained / "refused").exists()


def test_rows_of_other_dialogues_are_refused(trained, tmp_path):
    table = load_judged(trained / "judged.parquet")
    moved = table.with_columns(dialogue=pl.col("dialogue") + 1)
    save_judged(tmp_path / "judged.parquet", moved)
    with pytest.raises(UserError, match="is none of the prepared ones; run judge again"):
        train(tmp_path, trained / "data")
    save_judged(tmp_path / "judged.parquet", table.filter(pl.col("split") != "valid"))
    with pytest.raises(UserError, match="of 0 dialogues in valid, expected two at least"):
        train(tmp_path, trained / "data")
