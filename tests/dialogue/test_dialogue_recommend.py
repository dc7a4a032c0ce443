"""Stage 2: baselines, groups of targets, lists, and the command on a generated world."""

import json

import numpy as np
import polars as pl
import pytest

from shielded_recrl.dialogue import fuse, make, prepare, recommend
from shielded_recrl.dialogue.corpus.dialogues import Dialogue, Dialogues, Turn
from shielded_recrl.dialogue.recommender.baselines import baselines
from shielded_recrl.dialogue.recommender.contexts import Context, Mention, recommendation_samples
from shielded_recrl.dialogue.recommender.evaluation import (
    counted_system,
    evaluate,
    rank,
    recommendations,
)
from shielded_recrl.dialogue.recommender.evidence import Counts
from shielded_recrl.dialogue.recommender.files import load
from shielded_recrl.dialogue.recommender.items import indicators
from shielded_recrl.dialogue.recommender.tables import ORDER, page
from shielded_recrl.dialogue.settings import (
    DialogueWorldSettings,
    FusionSettings,
    RecommendSettings,
)
from shielded_recrl.errors import UserError
from shielded_recrl.files import seal_holds

S, R = "seeker", "recommender"


def context(*items):
    return Context(0, tuple(Mention(item, S, 1, ()) for item in items), {})


# Baselines


def test_baselines_by_hand():
    rows = [[1, 2, 3], [1, 2], [2, 4], [4], [4]]
    counts = Counts(indicators(rows, {i: i for i in range(6)}), None)
    found = baselines(counts)
    order = {
        name: np.argsort(-score([context(1, 3)])[0], kind="stable").tolist()
        for name, score in found.items()
    }
    # Named by 2, 3, 1, 3 and 0 dialogues.
    assert order["popularity"] == [2, 4, 1, 3, 0, 5]
    assert order["copy"][:4] == [3, 1, 2, 4]
    # With 1: 2 twice and 3 once; with 3: 1 and 2 once.
    assert found["cooccurrence"]([context(1, 3)])[0].round(0).tolist() == [0, 1, 3, 1, 0, 0]
    assert order["cooccurrence"][:3] == [2, 1, 3]
    # Nothing named: by popularity.
    assert np.argsort(-found["cooccurrence"]([context()])[0], kind="stable")[:2].tolist() == [2, 4]


# Groups and lists

TALK = Dialogue(
    7,
    "test",
    (
        Turn(S, "hi <movie>", (1,)),
        Turn(R, "<movie> and <movie>", (2, 3)),
        Turn(S, "no", ()),
        Turn(R, "<movie> or <movie>", (1, 4)),
    ),
    {2: 1, 4: 0},
)


def fixed(scores):
    return counted_system(
        lambda contexts: np.tile(np.array(scores, dtype=float), (len(contexts), 1))
    )


def test_new_targets_have_no_named_candidates():
    found = rank(fixed([99, 5, 4, 3, 2, 1]), recommendation_samples([TALK], {}))
    # Targets 2 and 3 after item 1; then 1, a repeat, and 4 after 1, 2 and 3.
    assert found["all"].ranks.tolist() == [2, 3, 1, 4]
    assert found["new"].ranks[[0, 1, 3]].tolist() == [1, 2, 1]
    e = np.exp([4.0, 3, 2, 1])
    assert found["new"].scores[0] == pytest.approx(4 - np.log(e.sum()))


def test_groups_hold_their_targets():
    samples = recommendation_samples([TALK], {})
    systems = {"ours": fixed([0, 5, 4, 3, 2, 1]), "other": fixed([0, 1, 1, 1, 1, 1])}
    report = evaluate(systems, samples, "ours", resamples=20)
    sizes = {g: (v["targets"], v["liked"], v["disliked"]) for g, v in report.items()}
    assert sizes == {"all": (4, 1, 1), "repeats": (1, 0, 0), "new": (3, 1, 1)}
    assert report["new"]["systems"]["ours"]["recall@1"]["mean"] == pytest.approx(2 / 3)
    assert report["new"]["systems"]["other"]["recall@1"]["mean"] == 0
    assert report["repeats"]["systems"]["ours"]["recall@1"]["mean"] == 1
    assert report["new"]["ahead_of"]["other"]["recall@1"]["mean"] == pytest.approx(2 / 3)
    assert report["repeats"]["systems"]["ours"]["auc"] is None


def test_recommendations_are_the_best_new_items_lower_ids_first():
    rows = recommendations(fixed([9, 5, 1, 1, 2, 2]), [TALK], {})
    assert [row[3] for row in rows if row[1] == 1] == [4, 5, 2, 3]
    assert [row[2:] for row in rows if row[1] == 3] == [(1, 4), (2, 5)]
    assert {row[:2] for row in rows} == {(7, 1), (7, 3)}
    opening = TALK._replace(turns=(Turn(R, "hello", ()), *TALK.turns))
    assert {row[1] for row in recommendations(fixed([0] * 6), [opening], {})} == {2, 4}


# The command


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Both stages over the default generated world."""
    folder = tmp_path_factory.mktemp("recommender")
    make.main(out=folder / "raw", settings=DialogueWorldSettings(comments=280))
    prepare.main(
        raw=folder / "raw",
        out=folder / "data",
        genres=folder / "raw" / "movies.csv",
        synthetic=True,
    )
    few = {"folds": 4, "bootstrap": 200}
    fuse.main(
        data=folder / "data",
        out=folder / "fusion",
        seed=42,
        settings=FusionSettings(**few, epochs=6),
    )
    recommend.main(
        data=folder / "data",
        fusion=folder / "fusion",
        out=folder / "recommender",
        seed=42,
        settings=RecommendSettings(epochs=12, learning_rate=5e-3, bootstrap=200),
    )
    return folder


@pytest.fixture(scope="module")
def evaluation(world):
    return json.loads((world / "recommender" / "evaluation.json").read_text())


def test_it_beats_every_baseline_on_new_films(evaluation):
    new = evaluation["splits"]["test"]["new"]
    for name in ("popularity", "copy", "cooccurrence"):
        ahead = new["ahead_of"][name]
        assert ahead["recall@10"]["mean"] > 0, name
        assert ahead["ndcg@50"]["low"] > 0, name


def test_it_learns_when_films_are_named_again(evaluation):
    repeats = evaluation["splits"]["test"]["repeats"]["systems"]
    assert repeats["recommender"]["recall@10"]["mean"] > 0.9
    assert repeats["recommender"]["recall@1"]["mean"] > repeats["stage1"]["recall@1"]["mean"]


def test_every_metric_of_every_group_has_its_interval(evaluation):
    kinds = ("recall", "ndcg", "mrr", "recall_true")
    wanted = {f"{kind}@{k}" for kind in kinds for k in (1, 10, 50)}
    for split in ("valid", "test"):
        groups = evaluation["splits"][split]
        assert set(groups) == {"all", "repeats", "new"}
        for group in groups.values():
            assert set(group["systems"]) == set(ORDER)
            assert set(group["ahead_of"]) == set(ORDER[1:])
            for metrics in group["systems"].values():
                assert set(metrics) == wanted | {"auc"}
            for metrics in group["ahead_of"].values():
                assert set(metrics) == wanted
            for metrics in [*group["systems"].values(), *group["ahead_of"].values()]:
                for name, value in metrics.items():
                    assert value is None or value["low"] <= value["mean"] <= value["high"], name
    assert all(value for value in groups["new"]["systems"]["recommender"].values())


def test_the_page_has_every_number_of_the_test_split(world, evaluation):
    text = (world / "recommender" / "evaluation.md").read_text()
    for name, group in evaluation["splits"]["test"].items():
        assert (
            f"## {name}: {group['targets']:,} targets of {group['dialogues']:,} dialogues" in text
        )
    new = evaluation["splits"]["test"]["new"]
    part = text.split("## new")[1].split("##")[0]
    (row,) = (row for row in part.splitlines() if row.startswith("| recall_true@10"))
    cells = [metrics["recall_true@10"] for metrics in map(new["systems"].get, ORDER)]
    cells.append(new["ahead_of"]["cooccurrence"]["recall_true@10"])
    shown = [f"{v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for v in cells[:-1]]
    shown.append("{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format_map(cells[-1]))
    assert row.split(" | ", 1)[1] == " | ".join(shown) + " |"


def test_a_group_without_targets_or_answers_is_shown_as_such():
    alone = [sample._replace(liked=2) for sample in recommendation_samples([TALK], {})[:1]]
    group = {"recommender": fixed([0, 5, 4, 3, 2, 1]), "cooccurrence": fixed([0, 1, 1, 1, 1, 1])}
    text = page(evaluate(group, alone, "recommender", resamples=10), candidates=5)
    assert "## repeats: 0 targets of 0 dialogues" in text
    assert text.count("\n\nNone.\n") == 1
    assert "| auc | – | – | |" in text


def test_recommendations_cover_every_turn_and_name_nothing_again(world):
    path = world / "recommender" / "recommendations.parquet"
    assert seal_holds(path)
    table = pl.read_parquet(path)
    lists = {
        (d, t): items
        for d, t, items in table.sort("position")
        .group_by("dialogue", "turn", maintain_order=True)
        .agg("item")
        .iter_rows()
    }
    dialogues = Dialogues.load(world / "data")
    wanted = {
        (dialogue.index, number): {i for turn in dialogue.turns[:number] for i in turn.items}
        for dialogue in dialogues.all
        for number, turn in enumerate(dialogue.turns)
        if number and turn.role == R
    }
    assert set(lists) == set(wanted)
    for place, items in lists.items():
        assert len(items) == len(set(items)) == 10
        assert not wanted[place] & set(items)
        assert all(1 <= item <= dialogues.n_items for item in items)


def test_stage_2_starts_from_stage_1(world, evaluation, tmp_path):
    assert evaluation["best_epoch"] > 0, "it learned something"
    said = {"data": world / "data", "fusion": world / "fusion", "seed": 1}
    little = RecommendSettings(epochs=1, patience=1, learning_rate=1e-6, bootstrap=10)
    recommend.main(**said, out=tmp_path, settings=little)
    first = load(world / "fusion" / "model.safetensors").weights
    second = load(tmp_path / "model.safetensors").weights
    trained = load(world / "recommender" / "model.safetensors").weights
    for name, weights in first.items():
        np.testing.assert_allclose(second[name], weights, atol=1e-4)
    assert any(not np.allclose(trained[name], first[name], atol=1e-3) for name in first)
    nothing = little.model_copy(update={"learning_rate": 1e-12})
    with pytest.raises(UserError, match="recommend learned nothing: after none of its 1 epochs"):
        recommend.main(**said, out=tmp_path / "none", settings=nothing)
    assert not (tmp_path / "none").exists()


def test_answers_are_labels_and_never_inputs(world, tmp_path):
    """With test answers turned round, the same films are found; only who counts as liked changes."""
    data = tmp_path / "data"
    data.mkdir()
    for path in (world / "data").glob("*.parquet"):
        (data / path.name).write_bytes(path.read_bytes())
    test = pl.read_parquet(data / "dialogues.parquet").filter(split="test")["dialogue"].implode()
    feedback = pl.read_parquet(data / "feedback.parquet").with_columns(
        liked=pl.when(pl.col("dialogue").is_in(test) & (pl.col("liked") < 2))
        .then(1 - pl.col("liked"))
        .otherwise(pl.col("liked"))
        .cast(pl.Int8)
    )
    feedback.write_parquet(data / "feedback.parquet")
    results = {}
    for name, folder in (("as_said", world / "data"), ("turned", data)):
        out = tmp_path / name
        fuse.main(
            data=folder, out=out, seed=1, settings=FusionSettings(epochs=1, folds=2, bootstrap=10)
        )
        settings = RecommendSettings(epochs=1, bootstrap=10)
        recommend.main(data=folder, fusion=out, out=out / "rec", seed=1, settings=settings)
        results[name] = out / "rec"
    said, turned = (results[name] / "recommendations.parquet" for name in ("as_said", "turned"))
    assert said.read_bytes() == turned.read_bytes()
    first, second = (
        json.loads((folder / "evaluation.json").read_text())["splits"]["test"]["new"]
        for folder in results.values()
    )
    assert (first["liked"], first["disliked"]) == (second["disliked"], second["liked"])
    ours = "recommender"
    assert first["systems"][ours]["recall@10"] == second["systems"][ours]["recall@10"]
    assert first["systems"][ours]["auc"]["mean"] == pytest.approx(
        1 - second["systems"][ours]["auc"]["mean"]
    )


def test_feedback_weighs_the_loss(world, tmp_path):
    """Where disliked films weigh most, they come to score higher than they do by default."""
    settings = RecommendSettings(
        like_weight=0.1, dislike_weight=20.0, epochs=12, learning_rate=5e-3, bootstrap=10
    )
    recommend.main(
        data=world / "data", fusion=world / "fusion", out=tmp_path, seed=42, settings=settings
    )
    auc = [
        json.loads((folder / "evaluation.json").read_text())["splits"]["test"]["new"]["systems"][
            "recommender"
        ]["auc"]["mean"]
        for folder in (tmp_path, world / "recommender")
    ]
    assert auc[0] < auc[1]


def test_a_stage_1_of_other_dialogues_is_refused(world, tmp_path):
    data = tmp_path / "data"
    make.main(
        out=tmp_path / "raw",
        seed=5,
        settings=DialogueWorldSettings(dialogues=60, films=40, comments=280),
    )
    prepare.main(raw=tmp_path / "raw", out=data, genres=tmp_path / "raw" / "movies.csv")
    with pytest.raises(UserError, match="not stage 1 of these dialogues") as error:
        recommend.main(data=data, fusion=world / "fusion", out=tmp_path / "out", seed=1)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no such file; make it with .*fuse"):
        recommend.main(data=data, fusion=tmp_path, out=tmp_path / "out", seed=1)
    assert not (tmp_path / "out").exists()
