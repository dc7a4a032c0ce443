"""The generated dialogues: true formats, equal bytes for equal seeds, and signal worth learning."""

import csv
import gzip
import json
import re
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest

from command_line import here
from shielded_recrl.dialogue import annotate, emotions, make, prepare
from shielded_recrl.dialogue.corpus import phrases
from shielded_recrl.dialogue.corpus.dialogues import (
    DISLIKED,
    LIKED,
    RECOMMENDER,
    SEEKER,
    Dialogues,
    targets,
)
from shielded_recrl.dialogue.corpus.world import draw_world
from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.emotion.turns import load_emotions
from shielded_recrl.dialogue.settings import DialogueWorldSettings

SMALL = DialogueWorldSettings(dialogues=40, films=40, comments=300)
WISH = re.compile(
    "(adventure|action|sci-fi|horror|thriller|crime|drama|war|western|comedy|romance|fantasy) "
)
FILES = {
    "train_data.jsonl",
    "test_data.jsonl",
    "movies_with_mentions.csv",
    "movies.csv",
    *(f"goemotions/{part}.tsv" for part in ("train", "dev", "test")),
}


def contents(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogue") / "raw"
    make.main(out=folder)
    return folder


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("dialogue") / "data"
    prepare.main(raw=raw, out=out)
    return out


@pytest.fixture(scope="module")
def dialogues(data):
    return Dialogues.load(data)


@pytest.fixture(scope="module")
def rows(raw):
    return [
        json.loads(line)
        for name in ("train_data.jsonl", "test_data.jsonl")
        for line in (raw / name).read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def comments(raw):
    return {
        part: [
            line.split("\t")
            for line in (raw / "goemotions" / f"{part}.tsv").read_text().splitlines()
        ]
        for part in ("train", "dev", "test")
    }


def test_equal_seeds_give_equal_bytes(tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        make.main(out=tmp_path / name, seed=seed, settings=SMALL)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert set(one) == FILES
    assert all(one[name] != three[name] for name in FILES)


def test_the_command(tmp_path):
    end = here("dialogue", "make", "--out", tmp_path / "raw", "--dialogues", 40, "--films", 40)
    assert end.returncode == 0, end.stderr
    assert end.stdout.count("\n") == 1
    assert set(contents(tmp_path / "raw")) == FILES
    refused = here("dialogue", "make", "--out", tmp_path / "other", "--films", 5)
    assert refused.returncode == 1
    assert "films" in refused.stderr
    assert not (tmp_path / "other").exists()


class TestReDial:
    """The form of every row, told from the published files."""

    def test_keys_and_types(self, rows):
        for row in rows:
            assert set(row) == {
                "movieMentions",
                "respondentQuestions",
                "messages",
                "conversationId",
                "respondentWorkerId",
                "initiatorWorkerId",
                "initiatorQuestions",
            }
            assert isinstance(row["conversationId"], str)
            workers = {row["initiatorWorkerId"], row["respondentWorkerId"]}
            assert len(workers) == 2
            for message in row["messages"]:
                assert set(message) == {"timeOffset", "text", "senderWorkerId", "messageId"}
                assert message["senderWorkerId"] in workers
                assert message["text"].strip()
            assert row["messages"][0]["timeOffset"] == 0
            offsets = [message["timeOffset"] for message in row["messages"]]
            assert offsets == sorted(offsets)
            for form in ("initiatorQuestions", "respondentQuestions"):
                assert row[form] == [] or set(row[form]) == set(row["movieMentions"])
        numbers = [message["messageId"] for row in rows for message in row["messages"]]
        assert len(set(numbers)) == len(numbers)
        assert any(row["initiatorQuestions"] == [] for row in rows)

    def test_as_the_published_ones(self, rows, shared_data):
        """Key by key, types are the same as in real files."""
        with gzip.open(shared_data / "redial" / "test_data.jsonl.gz") as stream:
            real = [json.loads(next(stream)) for _ in range(300)]
        assert shapes(rows) <= shapes(real)

    def test_films(self, raw, rows):
        with (raw / "movies_with_mentions.csv").open(newline="") as stream:
            table = list(csv.DictReader(stream))
        names = {row["movieId"]: row["movieName"] for row in table}
        counts = Counter(movie for row in rows for movie in row["movieMentions"])
        for row in rows:
            assert all(names[movie] == name for movie, name in row["movieMentions"].items())
            told = " ".join(message["text"] for message in row["messages"])
            assert set(re.findall("@([0-9]+)", told)) == set(row["movieMentions"])
        assert {row["movieId"]: int(row["nbMentions"]) for row in table} == {
            movie: counts[movie] for movie in names
        }
        # Films under two ids, and films without a year.
        assert len(names) > 120
        assert any("(" not in name for name in names.values())


def shapes(value, path=()) -> set:
    """Paths and types of all there is in rows; ids of films are one path."""
    if isinstance(value, dict):
        inner = ((*path, "id" if key.isdecimal() else key) for key in value)
        return set().union(*(shapes(v, p) for p, v in zip(inner, value.values(), strict=True)))
    if isinstance(value, list) and value:
        return set().union(*(shapes(v, (*path, "[]")) for v in value))
    return {(path, type(value).__name__)}


class TestGoEmotions:
    def test_form(self, comments):
        assert [len(comments[part]) for part in ("train", "dev", "test")] == [1920, 240, 240]
        every = [row for part in comments.values() for row in part]
        assert {len(row) for row in every} == {3}
        assert len({row[2] for row in every}) == len(every)
        for text, labels, code in every:
            numbers = [int(label) for label in labels.split(",")]
            assert numbers == sorted(set(numbers))
            assert text.strip() == text != ""
            assert len(code) == 7

    def test_every_label_is_there(self, comments):
        told = Counter(label for row in comments["train"] for label in row[1].split(","))
        assert set(told) == {str(number) for number in range(28)}
        assert told.most_common(1)[0][0] == "27"

    def test_labels_are_those_of_goemotions(self, shared_data):
        listed = (shared_data / "goemotions" / "original_labels.txt").read_text().split()
        assert list(phrases.FEELINGS) == listed

    def test_words_tell_the_label_beyond_chance(self, comments):
        """The label that a comment's rarest word has most often in train, right in most cases."""
        seen = defaultdict(Counter)
        for text, labels, _ in comments["train"]:
            for word in set(text.lower().split()):
                seen[word].update(labels.split(",")[:1])
        right = 0
        for text, labels, _ in comments["test"]:
            known = [word for word in set(text.lower().split()) if word in seen]
            word = min(sorted(known), key=lambda word: seen[word].total())
            right += seen[word].most_common(1)[0][0] in labels.split(",")
        share = Counter(labels for _, labels, _ in comments["test"]).most_common(1)[0][1] / 240
        assert right / 240 > share + 0.25


class TestSignal:
    """What later stages are to find, found here by counting alone."""

    def test_films_of_one_taste_are_named_together(self, dialogues):
        counts = np.zeros((dialogues.n_items + 1,) * 2)
        for dialogue in dialogues.split("train"):
            named = {item for turn in dialogue.turns for item in turn.items}
            for item in named:
                counts[item, list(named - {item})] += 1
        popular = counts.sum(axis=0)
        hits = {"together": [], "popular": []}
        for target in targets(dialogues.split("test")):
            dialogue = dialogues.all[target.dialogue]
            before = {i for turn in dialogue.turns[: target.turn] for i in turn.items}
            if before and target.item not in before:
                scores = {"together": counts[list(before)].sum(axis=0), "popular": popular}
                for name, score in scores.items():
                    score = np.where(np.isin(np.arange(len(score)), list(before)), -1, score)
                    hits[name].append((score > score[target.item]).sum() < 10)
        together, popular = (np.mean(hits[name]) for name in ("together", "popular"))
        assert len(hits["together"]) > 100
        assert together > popular + 0.2

    def test_words_tell_what_was_liked(self, dialogues):
        """Sentences of pleasure are said about films that the form calls liked, and others not."""
        pleased, displeased = ("loved", "favorites", "enjoyed"), ("let-down", "boring", "gross")
        told = {LIKED: Counter(), DISLIKED: Counter()}
        for dialogue in dialogues.all:
            for turn in dialogue.turns:
                if turn.role == SEEKER and len(set(turn.items)) == 1:
                    liked = dialogue.liked.get(turn.items[0])
                    for words in (pleased, displeased):
                        if liked in told and any(word in turn.text for word in words):
                            told[liked][words] += 1
        assert told[LIKED][pleased] > 20 * max(1, told[DISLIKED][pleased])
        assert told[DISLIKED][displeased] > 20 * max(1, told[LIKED][displeased])

    def test_feedback_repeats_and_both_kinds_of_recommenders(self, dialogues):
        every = targets(dialogues.all)
        liked = Counter(target.liked for target in every)
        assert all(liked[answer] > 0.04 * len(every) for answer in (0, 1, 2))
        assert 0.05 < np.mean([target.is_repeat for target in every]) < 0.4
        lengths = [
            np.mean([len(turn.text.split()) for turn in one.turns if turn.role == RECOMMENDER])
            for one in dialogues.all
        ]
        plain, rich = np.quantile(lengths, [0.1, 0.9])
        assert rich > 1.8 * plain

    def test_a_seeker_wishes_for_what_suits(self):
        """The category of the wish is that of most films the seeker likes, more than of others."""
        world = draw_world(DialogueWorldSettings(dialogues=200), np.random.default_rng(3))
        shares = {LIKED: [], DISLIKED: []}
        for talk in world.talks:
            text = next(
                text for role, text in talk.messages if role == SEEKER and WISH.search(text)
            )
            wish = WISH.search(text.lower())[1]
            for film, opinion in talk.opinions.items():
                if opinion.liked in shares:
                    kinds = [kind.lower() for kind in world.films[film].categories]
                    shares[opinion.liked].append(wish in kinds)
        assert np.mean(shares[LIKED]) > np.mean(shares[DISLIKED]) + 0.3

    def test_each_of_the_nine_emotions_is_the_likeliest_of_some_turns(self, raw, data, tmp_path):
        emotions.main(goemotions=raw / "goemotions", out=tmp_path)
        annotate.main(data=data, model=tmp_path, out=tmp_path / "turns.parquet")
        found = load_emotions(tmp_path / "turns.parquet")
        likeliest = Counter(feels[0][0] for feels in found.values() if feels)
        # Enough to be learned from: one turn in a hundred.
        assert min(likeliest[emotion] for emotion in EMOTIONS) > 0.01 * len(found)

    def test_prepared_whole(self, raw, dialogues):
        assert len(dialogues.all) == 400
        assert len(dialogues.split("test")) == 80
        assert dialogues.items["movies"].list.len().max() == 2
        assert pl.Series([len(one.turns) for one in dialogues.all]).min() >= 6
