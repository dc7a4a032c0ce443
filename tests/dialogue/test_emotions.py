"""Emotions of texts: vectors, classifier and its report."""

import gzip
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from command_line import here
from shielded_recrl.dialogue.corpus.world import draw_comments
from shielded_recrl.dialogue.emotion import lexicon
from shielded_recrl.dialogue.emotion.classifier import WEIGHTS, Classifier
from shielded_recrl.dialogue.emotion.features import has_words, plain, vectors
from shielded_recrl.dialogue.emotion.goemotions import read_comments
from shielded_recrl.dialogue.emotion.labels import (
    EMOTIONS,
    GOEMOTIONS,
    LEARNED,
    NOSTALGIA,
)
from shielded_recrl.dialogue.make import render_comments
from shielded_recrl.dialogue.settings import EmotionFitSettings
from shielded_recrl.errors import UserError

COMMENTS = 1500
SMALL = EmotionFitSettings(hash_bits=14, min_texts=2)


def place(name: str) -> int:
    return EMOTIONS.index(name)


def numbers(*names: str) -> str:
    return ",".join(str(GOEMOTIONS.index(name)) for name in names)


def written(folder, **parts) -> None:
    """A folder of GoEmotions from rows of text and labels."""
    folder.mkdir(exist_ok=True)
    for part, rows in parts.items():
        lines = [f"{text}\t{labels}\te{row}\n" for row, (text, labels) in enumerate(rows)]
        (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The embedded comments."""
    folder = tmp_path_factory.mktemp("generated")
    comments = draw_comments(COMMENTS, np.random.default_rng(1))
    for name, text in render_comments(comments, np.random.default_rng(2)).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "goemotions"


@pytest.fixture(scope="module")
def trained(generated, tmp_path_factory):
    """What the command wrote, and what it said."""
    out = tmp_path_factory.mktemp("trained")
    done = here("dialogue", "emotions", "--goemotions", generated, "--out", out, "--hash-bits", 14)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def classifier(trained):
    return Classifier.load(trained[0])


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the weights to damage."""
    path = tmp_path / "model" / WEIGHTS
    path.parent.mkdir()
    path.write_bytes((trained[0] / WEIGHTS).read_bytes())
    return path


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Vectors


def test_names_and_stretched_letters_become_one():
    assert plain("[NAME] is sooooooo GOOD") == plain("<movie>  is sooo good")
    assert not has_words(" <movie>\n<movie> ")
    assert has_words("<movie>?")


def test_words_left_letters_right():
    row = vectors(["so good"], 10)
    assert row.shape == (1, 2048)
    assert set(row.data) == {1}
    # Two words and one pair.
    assert (row.indices < 1024).sum() == 3


# Classifier


def test_distribution(classifier):
    texts = ["Thank you", "", "<movie>", "zzzz qqqq", "when i was a kid", "\U0001f600" * 5000]
    found = classifier.probabilities(texts)
    assert found.shape == (6, 9)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert classifier.probabilities([]).shape == (0, 9)


def test_nostalgia_is_the_word_lists_and_the_rest_keeps_its_ratios(classifier):
    texts = ["What a great movie.", "What a great movie of my childhood."]
    found = classifier.probabilities(texts)
    share = lexicon.probabilities(texts)[:, NOSTALGIA]
    np.testing.assert_array_equal(found[:, NOSTALGIA], share)
    assert share[0] == 0
    assert share[1] > 0.1
    eight = np.delete(found, NOSTALGIA, axis=1)
    np.testing.assert_allclose(eight.sum(axis=1), 1 - share)


def test_one_text_alone_as_among_others(classifier):
    texts = ["Thank you", "That was awful", "Who is in it?"]
    np.testing.assert_allclose(
        classifier.probabilities(texts),
        np.concatenate([classifier.probabilities([text]) for text in texts]),
        atol=1e-6,
    )


def test_a_comment_of_two_emotions_pulls_to_both(tmp_path):
    each = [
        ("plain talk", "neutral"),
        ("much gratitude", "gratitude"),
        ("pure joy", "joy"),
        ("deep love", "love"),
        ("big anger", "anger"),
        ("who asks", "curiosity"),
        ("so agreed", "approval"),
        ("oh sudden", "surprise"),
    ]
    rows = [(text, numbers(label)) for text, label in each] * 6
    rows += [("grumpy bear", numbers("joy", "anger", "fear"))] * 6
    written(tmp_path, train=rows, dev=rows)
    comments = read_comments(tmp_path / "train.tsv", 0)
    model = Classifier.fit(comments, comments, SMALL.model_copy(update={"balance": 0.0}))
    found = model.probabilities(["grumpy bear"])[0]
    # Three labels of two emotions: equal shares but for letters that other comments have too.
    assert found[place("happy")] > 0.4
    assert found[place("negative")] > 0.4


def test_balance_favours_rare_emotions(generated):
    train, dev = (read_comments(generated / f"{part}.tsv", 0) for part in ("train", "dev"))
    rare = LEARNED[int(train.targets[:, LEARNED].sum(axis=0).argmin())]
    named = [
        Classifier.fit(train, dev, SMALL.model_copy(update={"balance": balance}))
        .probabilities(["something else entirely", "<movie>"])[:, rare]
        .mean()
        for balance in (0.0, 1.0)
    ]
    assert named[1] > named[0]


def test_an_emotion_without_comments_is_refused(tmp_path):
    written(tmp_path, train=[("so so", numbers("neutral"))] * 4)
    comments = read_comments(tmp_path / "train.tsv", 0)
    assert "no comment is like" in refused(Classifier.fit, comments, comments, SMALL)


# Weights


def test_weights_come_back_and_equal_inputs_give_equal_bytes(trained, generated, tmp_path):
    folder = trained[0]
    done = here(
        "dialogue", "emotions", "--goemotions", generated, "--out", tmp_path, "--hash-bits", 14
    )
    assert done.returncode == 0
    for name in (WEIGHTS, "report.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    loaded = Classifier.load(folder)
    loaded.save(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_flipped_bit_and_a_cut_file_are_refused(copied):
    whole = copied.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damaged in (bytes(flipped), whole[:-100], whole[:6], b""):
        copied.write_bytes(damaged)
        assert str(copied) in refused(Classifier.load, copied.parent)
    copied.unlink()
    assert "no such file" in refused(Classifier.load, copied.parent)


def rewritten(path, change, about=None) -> None:
    """Weights of somebody else: without a seal."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        said = json.loads(file.metadata()["emotion"])
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"emotion": json.dumps(said | (about or {}))})


DAMAGES = {
    "a weight is no number": lambda t: t["weights"].__setitem__((0, 0), np.nan),
    "another width": lambda t: t.update(weights=t["weights"][:, :5].copy()),
    "another type": lambda t: t.update(rarity=t["rarity"].astype(np.float64)),
    "a column too far": lambda t: t["columns"].__setitem__(-1, 1 << 20),
    "columns in disorder": lambda t: t.update(columns=t["columns"][::-1].copy()),
    "fewer columns": lambda t: t.update(columns=t["columns"][:-1].copy()),
    "only letters": lambda t: t.update({n: t[n][-9:].copy() for n in ("columns", "rarity")}),
    "no bias": lambda t: t.pop("bias"),
    "one tensor more": lambda t: t.update(more=t["bias"].copy()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_of_another_kind_are_refused(damage, copied):
    rewritten(copied, DAMAGES[damage])
    assert "not an emotion classifier" in refused(Classifier.load, copied.parent)


def test_other_emotions_or_settings_are_refused(copied):
    rewritten(copied, lambda t: None)
    Classifier.load(copied.parent)
    rewritten(copied, lambda t: None, {"emotions": EMOTIONS[::-1]})
    assert "not an emotion classifier" in refused(Classifier.load, copied.parent)
    rewritten(copied, lambda t: None, {"emotions": EMOTIONS, "settings": {"hash_bits": 99}})
    assert "not an emotion classifier" in refused(Classifier.load, copied.parent)


# Command


def test_report(trained, generated):
    out, said = trained
    report = json.loads((out / "report.json").read_text())
    test = report["test"]
    assert report["comments"]["train"]["read"] == len(
        (generated / "train.tsv").read_text().splitlines()
    )
    for name in ("classifier", "lexicon", "majority"):
        table = np.array(test[name]["confusion"])
        assert np.trace(table) / table.sum() == pytest.approx(test[name]["accuracy"]["mean"])
        assert test[name]["accuracy"]["low"] <= test[name]["accuracy"]["high"]
    assert test["classifier"]["accuracy"]["low"] > test["lexicon"]["accuracy"]["mean"]
    assert test["lexicon"]["accuracy"]["low"] > test["majority"]["accuracy"]["mean"]
    assert test["classifier_minus_lexicon"]["low"] > 0
    assert f"{test['classifier']['accuracy']['mean']:.3f}" in said


def test_labels_that_say_nothing_teach_nothing(generated, tmp_path):
    """Trained on labels dealt at random, it is no better than the commonest emotion."""
    rng = np.random.default_rng(0)
    for part in ("train", "dev", "test"):
        rows = [line.split("\t") for line in (generated / f"{part}.tsv").read_text().splitlines()]
        labels = [row[1] for row in rows]
        if part != "test":
            labels = rng.permutation(labels)
        written(
            tmp_path, **{part: [(row[0], label) for row, label in zip(rows, labels, strict=True)]}
        )
    done = here(
        "dialogue", "emotions", "--goemotions", tmp_path, "--out", tmp_path / "out",
        "--hash-bits", 14, "--balance", 0,
    )  # fmt: skip
    assert done.returncode == 0
    test = json.loads((tmp_path / "out/report.json").read_text())["test"]
    assert test["classifier"]["accuracy"]["low"] < test["majority"]["accuracy"]["mean"] + 0.05
    assert test["classifier_minus_lexicon"]["high"] < 0


def test_a_missing_folder_is_one_line(tmp_path):
    done = here("dialogue", "emotions", "--goemotions", tmp_path, "--out", tmp_path / "out")
    assert done.returncode
    assert "train.tsv" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_real_comments(shared_data, tmp_path):
    """Of a sixth of the training comments it learns more than the word list knows."""
    for part, count in (("train", 7000), ("dev", 1000), ("test", 2000)):
        with gzip.open(shared_data / f"goemotions/{part}.tsv.gz", "rt", encoding="utf-8") as file:
            lines = [line for _, line in zip(range(count), file, strict=False)]
        (tmp_path / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")
    done = here(
        "dialogue", "emotions", "--goemotions", tmp_path, "--out", tmp_path / "out",
        "--hash-bits", 16, "--iterations", 40,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["comments"]["train"]["damaged"] == {}
    test = report["test"]
    assert test["classifier"]["macro_f1"]["mean"] > test["majority"]["macro_f1"]["high"]
    assert test["classifier"]["accuracy"]["low"] > 0.5
