"""Stage 1: what is counted, what a context holds, the fused score, and the command with its gate."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from shielded_recrl.dialogue import fuse, make, prepare
from shielded_recrl.dialogue.corpus.dialogues import Dialogue, Dialogues, Turn
from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.recommender.contexts import (
    EMOTION_WEIGHTS,
    Context,
    Mention,
    context_before,
    entity_samples,
    recommendation_samples,
)
from shielded_recrl.dialogue.recommender.evidence import Evidence, count
from shielded_recrl.dialogue.recommender.files import load
from shielded_recrl.dialogue.recommender.fusion import EVIDENCE, Recommender, collate, known
from shielded_recrl.dialogue.recommender.gate import require_found
from shielded_recrl.dialogue.recommender.items import describe, title_words, words
from shielded_recrl.dialogue.recommender.training import Knowledge, Schedule, fit
from shielded_recrl.dialogue.settings import DialogueWorldSettings, FusionSettings
from shielded_recrl.errors import UserError

S, R = "seeker", "recommender"
ITEMS = pl.DataFrame(
    {
        "title": ["The Dark Moon", "Dark Moon 2", "Laugh", "Giggle", "Alone"],
        "year": [1994, 1999, 2003, None, 1995],
        "categories": [["Horror"], ["Horror"], ["Comedy"], ["Comedy"], []],
    }
)


def dialogue(index, *turns, liked=None, split="train"):
    return Dialogue(index, split, tuple(Turn(*turn) for turn in turns), liked or {})


TALKS = [
    dialogue(
        0,
        (S, "hello scary please, <movie>", (1,)),
        (R, "try <movie> or <movie>", (2, 3)),
        (S, "i hate that", ()),
        (R, "then <movie> and <movie> again", (4, 2)),
        liked={2: 1, 3: 0},
    ),
    dialogue(1, (S, "a scary one", ()), (R, "<movie>", (1,)), (R, "and <movie>", (2,))),
    dialogue(2, (S, "funny please, i saw <movie>", (3,)), (R, "<movie>", (4,))),
    dialogue(3, (S, "funny", ()), (R, "<movie> <movie>", (3, 4))),
]


@pytest.fixture
def catalogue():
    return describe(ITEMS, TALKS, min_dialogues=1)


def evidence(catalogue, talks=TALKS):
    return Evidence.fit(count(talks, catalogue), catalogue, item_prior=2.0, word_prior=4.0)


def context(*mentions, said=None):
    return Context(0, tuple(Mention(item, S, 0, ()) for item in mentions), said or {})


# Items and words


def test_words_leave_slots_out_and_titles_lose_what_tells_nothing():
    assert words("I LOVE <movie>, it's the best!") == ["i", "love", "it's", "the", "best"]
    assert title_words("The Lord of the Rings: Part 2") == {"lord", "rings", "2"}


def test_items_are_described_by_title_category_and_decade(catalogue):
    places = {name: index for index, name in enumerate(catalogue.attributes)}
    assert set(places) == {"1990s", "2000s", "Comedy", "Horror"}
    described = catalogue.described.toarray()
    assert described[1].nonzero()[0].tolist() == sorted([places["1990s"], places["Horror"]])
    assert not described[0].any()
    assert described[4].sum() == 1
    assert catalogue.titles[[1]].sum() == 2
    assert not catalogue.titles[[0]].sum()


def test_a_rare_word_of_turns_is_left_out_and_one_of_titles_is_kept():
    known = describe(ITEMS, TALKS, min_dialogues=2).vocabulary
    assert "scary" in known
    assert "hate" not in known
    assert "giggle" in known


# Evidence


def test_evidence_by_hand(catalogue):
    found = evidence(catalogue)
    # Dialogues that name items 0..5: 0, 2, 2, 3, 3, 0.
    share = np.array([0.5, 2.5, 2.5, 3.5, 3.5, 0.5]) / 13
    np.testing.assert_allclose(found.popularity, np.log(share), rtol=1e-6)
    # Item 1 was named with 2 twice, with 3 and 4 once: C_1. = 4.
    row = found.neighbours.toarray()[1]
    np.testing.assert_allclose(row[[1, 2, 3, 5]], [0, 2 / 6 / share[2], 1 / 6 / share[3], 0])
    assert found.rest[1] == pytest.approx(2 / 6)
    # With the rest they are smoothed probabilities over p_i: they sum to one.
    assert (row * share).sum() + found.rest[1] == pytest.approx(1)
    scary, p = catalogue.vocabulary["scary"], 2.5 / 5
    odds = found.words.toarray()[scary] - found.length
    assert odds[1] == pytest.approx(np.log((2 + 4 * p) / (2 + 4) / p), rel=1e-6)
    assert odds[5] == pytest.approx(0), "of an item never named, words say nothing"
    horror = catalogue.attributes.index("Horror")
    assert found.attribute_words[scary, horror] == pytest.approx(
        np.log((2 + 4 * p) / (2 + 4) / p), rel=1e-6
    )


def test_items_named_beside_the_same_ones_have_vectors_alike(catalogue):
    pairs = [(1, 3), (2, 3), (1, 3), (2, 3), (4, 4)]
    talks = [dialogue(index, (R, "<movie> <movie>", items)) for index, items in enumerate(pairs)]
    found = evidence(catalogue, talks)
    alike = found.vectors @ found.vectors.T
    assert alike[1, 2] == pytest.approx(1, abs=1e-5)
    assert abs(alike[1, 3]) < 1e-5, "they are named together, beside different ones"
    assert not found.vectors[[0, 4, 5]].any(), "never named with another"


def test_attributes_named_together_have_a_lift(catalogue):
    found = evidence(catalogue)
    horror, comedy = (catalogue.attributes.index(name) for name in ("Horror", "Comedy"))
    assert found.attributes[horror, horror] > 0 > found.attributes[horror, comedy]


def test_a_dialogue_is_seen_through_the_counts_of_others_alone():
    items = pl.DataFrame(
        ITEMS.with_row_index("item", 1).with_columns(pl.col("item").cast(pl.Int32))
    )
    settings = FusionSettings(folds=2, min_word_dialogues=1)
    valid = dialogue(8, (S, "dull", ()), (R, "<movie>", (5,)), split="valid")
    talks = [*TALKS, valid]
    knowledge = Knowledge.of(Dialogues(items, talks), settings)
    changed = [talks[0]._replace(turns=(Turn(R, "scary scary", (5, 5)),)), *talks[1:]]
    other = Knowledge.of(Dialogues(items, changed), settings)
    own = knowledge.fold_of[0]
    assert knowledge.fold_of[2] == own
    assert knowledge.fold_of[1] != own
    np.testing.assert_array_equal(knowledge.folds[own].popularity, other.folds[own].popularity)
    np.testing.assert_array_equal(
        knowledge.folds[own].neighbours.to_dense(), other.folds[own].neighbours.to_dense()
    )
    assert not torch.equal(knowledge.whole.popularity, other.whole.popularity)
    samples = recommendation_samples(TALKS, {})
    contexts = [sample.context for sample in samples] + [
        context(1)._replace(dialogue=index) for index in (8, 9)
    ]
    seen = {
        contexts[place].dialogue: source
        for source, places in knowledge.groups(contexts)
        for place in places
    }
    assert seen[0] is knowledge.folds[own]
    assert seen[1] is knowledge.folds[1 - own]
    assert seen[8] is knowledge.whole, "what stops training is not counted in training"
    assert seen[9] is knowledge.served
    assert knowledge.served.popularity[5] > knowledge.whole.popularity[5]


# Contexts


def test_a_context_holds_what_was_said_before():
    found = context_before(TALKS[0], 3, {})
    assert [(m.item, m.role, m.age) for m in found.mentions] == [(1, S, 3), (2, R, 2), (3, R, 2)]
    assert found.words["hello"] == 3
    assert found.words["hate"] == 1
    assert "again" not in found.words
    assert found.named == {1, 2, 3}


def test_later_turns_and_the_questionnaire_are_no_part_of_a_context():
    other = TALKS[0]._replace(turns=(*TALKS[0].turns[:3], Turn(R, "x <movie>", (5,))), liked={2: 0})
    assert context_before(TALKS[0], 3, {}) == context_before(other, 3, {})
    ours = [sample.context for sample in recommendation_samples([TALKS[0]], {})]
    theirs = [
        sample.context for sample in recommendation_samples([TALKS[0]._replace(liked={})], {})
    ]
    assert ours == theirs


def test_what_the_recommender_names_is_felt_in_the_seekers_answer():
    felt = {
        (0, 0): [("happy", 0.9)],
        (0, 2): [("negative", 0.6), ("curious", 0.2)],
        (0, 1): [("like", 1.0)],
    }
    first, second, _ = context_before(TALKS[0], 3, felt).mentions
    assert first.emotions == (("happy", 0.9),)
    assert second.emotions == (("negative", 0.6), ("curious", 0.2))
    # Before the answer is known.
    assert context_before(TALKS[0], 2, felt).mentions[1].emotions == ()


def test_recommendation_samples_are_the_targets():
    found = [(s.turn, s.item, s.is_repeat, s.liked) for s in recommendation_samples(TALKS[:1], {})]
    assert found == [(1, 2, False, 1), (1, 3, False, 0), (3, 4, False, 2), (3, 2, True, 1)]


def test_a_held_out_film_is_in_no_turn_of_its_context():
    samples = entity_samples(TALKS[:1], {})
    assert [sample.item for sample in samples] == [1, 2, 3, 4]
    second = samples[1].context
    # Turns 1 and 3 name it; they say "try" and "again".
    assert second.named == {1}
    assert not {"try", "again"} & set(second.words)
    assert all(sample.item not in sample.context.named for sample in samples)


# The fused score


@pytest.fixture
def model(catalogue):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Recommender(catalogue, dim=8, dropout=0.5).eval()


def scores(model, catalogue, *contexts):
    with torch.no_grad():
        return model(collate(contexts, catalogue.vocabulary, 0.9), known(evidence(catalogue)))


def test_the_score_of_new_items_by_hand(model, catalogue):
    found = evidence(catalogue)
    with torch.no_grad():
        model.words.zero_(), model.attributes.zero_()
    row = scores(model, catalogue, context(1, said={"scary": 1}))[0].numpy()
    b = dict(zip(EVIDENCE, model.evidence.tolist(), strict=True))
    scary = catalogue.vocabulary["scary"]
    # Item 2 shares with item 1 both title words but "2", the category and the decade.
    rare = {word: np.log(5 / n) for word, n in (("dark", 2), ("moon", 2), ("2", 1))}
    alike = (rare["dark"] ** 2 + rare["moon"] ** 2) / (
        np.hypot(rare["dark"], rare["moon"])
        * np.sqrt(rare["dark"] ** 2 + rare["moon"] ** 2 + rare["2"] ** 2)
    )
    odds = found.attribute_words[scary][
        [catalogue.attributes.index("Horror"), catalogue.attributes.index("1990s")]
    ].mean()
    both = [catalogue.attributes.index(name) for name in ("Horror", "1990s")]
    named = found.dialogue_items.toarray()
    likeness = 10 * found.dialogue_words.toarray()[:, scary]
    likeness += 3 * named[:, 1] / np.sqrt(named.sum(axis=1))
    likely = np.exp(likeness) / np.exp(likeness).sum()
    wanted = (
        b["popularity"] * found.popularity[2]
        + b["cooccurrence"] * np.log(found.neighbours.toarray()[1, 2] + found.rest[1])
        + b["words"] * 0.9 * (found.words.toarray()[scary, 2] - found.length[2])
        + b["attribute_words"] * 0.9 * odds
        + b["related"] * (found.vectors[1] @ found.vectors[2])
        + b["attributes"] * found.attributes[np.ix_(both, both)].mean()
        + b["dialogues"] * np.log((likely @ named[:, 2] + 1e-3) / (named[:, 2].mean() + 1e-3))
        + b["titles_shared"] * alike
        + b["categories_shared"]
        + b["decades_shared"]
    )
    assert row[2] == pytest.approx(wanted, rel=1e-5)
    assert row[0] == -np.inf


def test_nothing_named_and_nothing_said_leaves_popularity(model, catalogue):
    row = scores(model, catalogue, context())[0, 1:]
    expected = model.evidence[0].item() * evidence(catalogue).popularity[1:]
    np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_a_batch_scores_as_its_contexts_alone(model, catalogue):
    several = [context(1, 3, 1, said={"scary": 0}), context(), context(2)]
    together = scores(model, catalogue, *several)
    for row, one in zip(together, several, strict=True):
        torch.testing.assert_close(row, scores(model, catalogue, one)[0])


def test_named_items_have_odds_against_all_new_ones(model, catalogue):
    with torch.no_grad():
        model.repetition.copy_(torch.tensor([-1.0, 0.5, 0.25]))
    old = Mention(1, S, 4, ())
    row = scores(model, catalogue, Context(0, (old, old, Mention(3, R, 1, ())), {}))[0]
    new = torch.logsumexp(row[[2, 4, 5]], dim=0)
    assert row[1] - new == pytest.approx(-1 + 0.25, abs=1e-5)
    assert row[3] - new == pytest.approx(-1 + 0.5, abs=1e-5)


def test_learning_repeats_leaves_the_ranking_of_new_films_alone(model, catalogue):
    # An item named twice: its score must not count twice in the gradient either.
    batch = collate([context(1, 1, 3)], catalogue.vocabulary, 0.9)
    row = model(batch, known(evidence(catalogue)))
    torch.nn.functional.cross_entropy(row, torch.tensor([1])).backward()
    assert model.repetition.grad.abs().sum() > 0.1
    for weights in (model.evidence, model.words, model.mentions.weight):
        torch.testing.assert_close(weights.grad, torch.zeros_like(weights), atol=1e-5, rtol=0)


def test_mentions_weigh_by_emotion_and_without_one_as_neutral(model, catalogue):
    felt = [Mention(1, S, 0, (("like", 0.8),)), Mention(2, S, 0, ()), Mention(3, S, 0, ())]
    felt[2] = felt[2]._replace(emotions=(("like", 0.3), ("negative", 0.1)))
    batch = collate([Context(0, tuple(felt), {})], catalogue.vocabulary, 0.9)
    weights = model.mention_weights(batch)[0]
    raw = np.array([2.0, 0.5, 0.75 * 2 + 0.25 * 1])
    np.testing.assert_allclose(weights.detach(), raw / raw.sum(), rtol=1e-6)
    assert set(EMOTION_WEIGHTS) == set(EMOTIONS)


# Training and the command


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared dialogues of a small generated world."""
    folder = tmp_path_factory.mktemp("dialogues")
    settings = DialogueWorldSettings(dialogues=60, films=40, comments=280)
    make.main(out=folder / "raw", seed=3, settings=settings)
    prepare.main(
        raw=folder / "raw",
        out=folder / "data",
        genres=folder / "raw" / "movies.csv",
        synthetic=True,
    )
    return folder / "data"


SMALL = FusionSettings(dim=8, folds=2, epochs=2, bootstrap=50)


def test_training_is_repeatable_and_keeps_the_best_epoch(data):
    dialogues = Dialogues.load(data)
    knowledge = Knowledge.of(dialogues, SMALL)
    train, valid = (entity_samples(dialogues.split(name), {}) for name in ("train", "valid"))

    def learn(rate=1e-2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Recommender(knowledge.catalogue, 8, 0.3)
        schedule = Schedule(2, 2, 64, rate, 0.1, 1.0)
        return fit(model, knowledge, train, valid, lambda sample: 1.0, schedule, 0, "fuse")

    state = torch.get_rng_state()
    first, second = learn(), learn()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    losses = [row["valid_loss"] for row in first.history]
    assert losses.index(min(losses)) == first.best_epoch
    assert first.history[-1]["loss"] < first.history[1]["loss"]
    with pytest.raises(UserError, match="fuse diverged in epoch 1"):
        learn(rate=1e30)


def test_the_command_writes_a_sealed_model_and_a_report(data, tmp_path, capsys):
    fuse.main(data=data, out=tmp_path / "a", seed=1, settings=SMALL)
    assert "next: python -m shielded_recrl.dialogue recommend" in capsys.readouterr().out
    fuse.main(data=data, out=tmp_path / "b", seed=1, settings=SMALL)
    for name in ("model.safetensors", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    baselines = {"copy", "popularity", "cooccurrence"}
    assert set(report["systems"]) == {"fusion", "untrained"} | baselines
    assert report["learned"]["repetition"]["named"] == -3, "no film held out is a repeat"
    model = tmp_path / "a" / "model.safetensors"
    assert load(model).stage == 1
    damaged = bytearray(model.read_bytes())
    damaged[-1] ^= 1
    model.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load(model)


@pytest.fixture
def beside_chance(data, tmp_path):
    """The dialogues with their mentions shuffled: what is popular stays so, all else is chance."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    mentions = pl.read_parquet(folder / "mentions.parquet")
    shuffled = mentions.with_columns(pl.col("item").shuffle(seed=0))
    shuffled.write_parquet(folder / "mentions.parquet")
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": 1e-12}, "fuse learned nothing: after none of its 2 epochs is the loss"),
        (
            {"min_recall": 1.0},
            r"held-out films .* less than the 1\.0 of dialogue.fusion.min_recall",
        ),
    ],
)
def test_a_model_that_cannot_find_films_stops_the_run_and_writes_nothing(
    data, tmp_path, changes, says
):
    with pytest.raises(UserError, match=says) as error:
        fuse.main(
            data=data, out=tmp_path / "out", seed=1, settings=SMALL.model_copy(update=changes)
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_ahead_of_popularity_stops_the_run(beside_chance, tmp_path):
    """However it learned: here, that of all it has popularity alone says something."""
    settings = SMALL.model_copy(update={"epochs": 10, "min_recall": 0.0})
    says = r"no better than popularity: .* a lead of .* \[-.*, .*\]"
    with pytest.raises(UserError, match=says) as error:
        fuse.main(data=beside_chance, out=tmp_path / "out", seed=1, settings=settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recall", "low", "passes"),
    [(0.3, 0.01, True), (0.19, 0.01, False), (0.3, 0.0, False), (0.3, -0.01, False)],
)
def test_the_gate_wants_both_bounds(recall, low, passes):
    found = {
        "systems": {name: {"recall@10": {"mean": recall}} for name in ("fusion", "popularity")},
        "ahead_of": {"popularity": {"recall@10": {"mean": 0.1, "low": low, "high": 0.2}}},
    }
    if passes:
        require_found(found, min_recall=0.2)
    else:
        with pytest.raises(UserError, match="stage 1"):
            require_found(found, min_recall=0.2)


def test_baselines_stand_beside_what_is_found(data, tmp_path, capsys):
    fuse.main(data=data, out=tmp_path, seed=1, settings=SMALL)
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    for name in ("fusion", "untrained", "cooccurrence", "popularity", "copy"):
        recall = report["systems"][name]["recall@10"]
        assert f"{name} {recall['mean']:.3f} [{recall['low']:.3f}, {recall['high']:.3f}]" in said
    assert set(report["ahead_of"]) == set(report["systems"]) - {"fusion"}


def test_missing_inputs_are_one_line(data, tmp_path):
    with pytest.raises(UserError, match=r"turns\.parquet: no such file; make it with .*annotate"):
        fuse.main(data=data, out=tmp_path, seed=1, emotions=tmp_path / "turns.parquet")
    with pytest.raises(UserError, match=r"no such file; make it with .*prepare"):
        fuse.main(data=tmp_path, out=tmp_path, seed=1)
    with pytest.raises(UserError, match="no such file; make it with"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b'{"a":1}x')
    with pytest.raises(UserError, match="safetensors"):
        load(tmp_path / "model.safetensors")


def test_films_of_which_only_the_title_is_known_can_be_scored():
    plain = ITEMS.with_columns(
        year=pl.lit(None, pl.Int16), categories=pl.lit([], pl.List(pl.String))
    )
    catalogue = describe(plain, TALKS, min_dialogues=1)
    model = Recommender(catalogue, dim=4, dropout=0.0).eval()
    row = scores(model, catalogue, context(1, said={"scary": 0}))[0]
    assert row[1:].isfinite().all()
