"""Toxicity scores, by either scorer, and their summary."""

import gzip
import json
import re
import socket
import sys

import numpy as np
import pytest

from audit_document import POLICY
from command_line import here
from shielded_recrl.audit import run, score, toxicity
from shielded_recrl.audit.settings import EMBEDDED_SCORER, AuditSettings, ScorerSettings
from shielded_recrl.audit.toxicity import SCORER, load_scorer, summarise, toxicity_scores
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, sha256


def test_offence_scores_high_and_praise_low():
    scores = toxicity_scores(["You are a fucking idiot", "A gentle story about two old friends"])
    assert scores[0] > 0.9
    assert scores[1] < 0.2


@pytest.mark.parametrize("texts", [[], [""], ["", "  \n"]])
def test_texts_without_content_score_zero(texts):
    np.testing.assert_array_equal(toxicity_scores(texts), np.zeros(len(texts)))


def test_batch_equals_one_by_one_and_keeps_places():
    texts = ["what a stupid damn thing", "", "a calm sea"]
    alone = np.concatenate([toxicity_scores([text]) for text in texts])
    np.testing.assert_allclose(toxicity_scores(texts), alone)


def test_summary_by_hand():
    scores = np.array([0.0, 0.5, 0.1, 0.2])
    result = summarise(["a", "b", "c", "d"], scores, np.array([1, 1, 2, 2]), 0.5, 200, seed=0)
    assert result["mean"]["mean"] == pytest.approx(0.2)
    # Users' means are 0.25 and 0.15, so that resampled users cannot leave that range.
    assert result["mean"]["low"] == pytest.approx(0.15)
    assert result["mean"]["high"] == pytest.approx(0.25)
    # User 1 twice: 0, 0, .5, .5; user 2 twice: .1, .1, .2, .2.
    assert result["p95"] == pytest.approx({"mean": 0.2 + 0.85 * 0.3, "low": 0.2, "high": 0.5})
    assert (result["max"], result["worst_text"]) == (0.5, "b")
    assert (result["toxic"], result["toxic_share"]) == (1, 0.25)


def test_few_ordinary_reviews_are_taken_for_offence(shared_data):
    path = shared_data / "books" / "reviews_Books_5_first1000.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["reviewText"] for line in lines]
    scores = toxicity_scores(texts)
    assert len(scores) == 1000
    assert (scores >= 0.5).mean() <= 0.01


def test_scorer_names_package_and_version():
    assert SCORER.startswith("alt-profanity-check 1.")


LABELS = ("obscene", "toxic", "severe_toxic", "threat", "insult", "identity_hate")


def classifier(folder, labels=LABELS, problem="multi_label_classification"):
    """A Bert of random weights in transformers format, and its logits of a text by itself."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", *"you are a calm sea of old friends and dull idiot".split()]
    words = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(names),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=12,
                initializer_range=0.5,
                id2label=dict(enumerate(labels)),
                label2id={label: at for at, label in enumerate(labels)},
                problem_type=problem,
            )
        ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def logits(text):
        ids = torch.tensor([tokenizer(text)["input_ids"][:12]])
        with torch.no_grad():
            return model(input_ids=ids).logits[0].double().numpy()

    return logits


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return monkeypatch


def test_a_local_classifier_is_loaded_without_a_network(tmp_path, no_network):
    logits = classifier(tmp_path / "toxic-bert")
    scorer = load_scorer(AuditSettings(scorer=str(tmp_path / "toxic-bert")))
    assert scorer.name.startswith("toxic-bert, sha256 ")
    texts = ["you are a dull idiot", "", "a calm sea", "old " * 40, "friends"]
    scores = scorer.scores(texts)
    # Detoxify: a sigmoid for each label, and its toxicity is the label of that name.
    expected = [1 / (1 + np.exp(-logits(text)[1])) if text else 0 for text in texts]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert np.ptp(scores[[0, 2, 4]]) > 0.01
    # Padding and batches change nothing but the last digits.
    alone = np.concatenate([scorer.scores([text]) for text in texts])
    np.testing.assert_allclose(scores, alone, rtol=1e-5)


def test_the_command_audits_with_a_local_classifier_and_no_network(case, tmp_path, no_network):
    logits = classifier(tmp_path / "toxic-bert")
    case.plant_text("you are a dull idiot")
    arguments = [
        *("run", "--data", case.data, "--explanations", case.explanations),
        *("--rankings", case.rankings, "--probes", case.probes),
        *("--out", "audit.json", "--dataset", "books", "--variant", "shielded", "--seed", "1"),
        *("--bootstrap", "50", "--permutations", "50", "--scorer", "./toxic-bert"),
    ]
    no_network.chdir(tmp_path)
    done = here("audit", *arguments)
    assert done.returncode == 0, done.stderr
    section = read_json(tmp_path / "audit.json")["toxicity"]
    assert section["scorer"].startswith("toxic-bert, sha256 ")
    listed = {row["after"]["text"]: row["after"]["score"] for row in section["worst"]}
    expected = {text: 1 / (1 + np.exp(-logits(text)[1])) for text in listed}
    assert listed == pytest.approx(expected, rel=1e-4)
    assert section["after"]["texts"] == 660
    assert 0 < section["after"]["mean"]["mean"] < 1
    assert section["false_positives"]["source"] == "reviews"


@pytest.mark.parametrize("scorer", [EMBEDDED_SCORER, "toxic-bert"])
def test_scores_of_shards_are_audited_to_the_same_bytes(case, tmp_path, monkeypatch, scorer):
    """Some 1,300 texts, in chunks that are no multiple of the batch, one of them a blank."""
    monkeypatch.setattr(toxicity, "CHUNK", 300)
    case.plant_text("")
    options = {"scorer": scorer}
    if scorer != EMBEDDED_SCORER:
        classifier(tmp_path / scorer)
        options["scorer"] = str(tmp_path / scorer)
    given = {"data": case.data, "explanations": case.explanations, "probes": case.probes}

    def audit(name, **parts):
        settings = AuditSettings(**options, bootstrap=50, permutations=50)
        about = {"rankings": case.rankings, "dataset": "books", "variant": "shielded"}
        out = tmp_path / name
        run.main(**given, **about, out=out, seed=1, settings=settings, **parts)
        return sha256(out)

    whole = audit("whole.json")
    for shards in (2, 8):
        parts = [tmp_path / f"shard-{shard}-of-{shards}.json" for shard in range(shards)]
        for shard, out in enumerate(parts):
            settings = ScorerSettings(**options)
            score.main(**given, out=out, settings=settings, seed=1, shard=shard, shards=shards)
        assert audit("joined.json", parts=tuple(parts[::-1])) == whole
    counts = [len(read_json(path)["part"]["scores"]) for path in parts]
    assert sorted(counts) == [0, 0, 0, 122, 300, 300, 300, 300]
    # A text has changed since.
    case.plant_text("A calm sea.")
    with pytest.raises(UserError, match=r"of-8\.json: made from other") as caught:
        audit("joined.json", parts=tuple(parts))
    assert "\n" not in str(caught.value)


def test_the_label_of_later_models_is_toxicity(tmp_path):
    logits = classifier(tmp_path, labels=("male", "toxicity", "female"))
    (score,) = load_scorer(AuditSettings(scorer=str(tmp_path))).scores(["a calm sea"])
    assert score == pytest.approx(1 / (1 + np.exp(-logits("a calm sea")[1])), rel=1e-5)


def test_a_hub_scorer_comes_from_the_cache_at_its_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789" * 4
    settings = AuditSettings(scorer="unitary/toxic-bert", scorer_revision=commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"unitary/toxic-bert at {commit} cannot be downloaded"):
        load_scorer(settings)
    logits = classifier(tmp_path / "models--unitary--toxic-bert" / "snapshots" / commit)
    scorer = load_scorer(settings)
    assert scorer.name == f"unitary/toxic-bert at {commit}"
    expected = 1 / (1 + np.exp(-logits("old friends")[1]))
    assert scorer.scores(["old friends"])[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("package", ["torch", "transformers", "huggingface_hub"])
@pytest.mark.parametrize("scorer", ["/any/folder", "unitary/toxic-bert"])
def test_a_package_that_is_missing_is_one_line(monkeypatch, package, scorer):
    """The environment of the audit has none of them: its own scorer is no transformer."""
    monkeypatch.setitem(sys.modules, package, None)
    revision = None if scorer.startswith("/") else "0123456789" * 4
    with pytest.raises(UserError) as error:
        load_scorer(AuditSettings(scorer=scorer, scorer_revision=revision))
    message = str(error.value)
    assert message.startswith(f"audit.scorer: {scorer} needs torch and transformers (")
    assert package in message
    assert message.endswith("or set audit.scorer to alt-profanity-check")
    assert "\n" not in message


def _headless(folder):
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["classifier.bias"]
    save_file(weights, path, metadata={"format": "pt"})


class Trap:
    """What runs code as it is unpickled, and leaves a trace of it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (self.trace.touch, ())


@pytest.mark.parametrize("name", ["toxic_original-c1212f89.ckpt", "pytorch_model.bin"])
@pytest.mark.parametrize("given", ["file", "folder", "folder with a config"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, name, given):
    """Detoxify releases its checkpoints so."""
    import torch

    folder = tmp_path / "detoxify"
    folder.mkdir()
    if given == "folder with a config":
        classifier(folder)
        (folder / "model.safetensors").unlink()
    torch.save({"state_dict": Trap(tmp_path / "trace")}, folder / name)
    scorer = folder / name if given == "file" else folder
    with pytest.raises(UserError) as error:
        load_scorer(AuditSettings(scorer=str(scorer)))
    assert str(error.value).startswith(f"{folder / name}: a pickle, which may run any code")
    assert str(error.value).endswith("converted by the lines in docs/audit.md")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "trace").exists()
    # The trap works.
    torch.load(folder / name, weights_only=False)
    assert (tmp_path / "trace").exists()


def test_the_conversion_in_the_documentation_gives_a_scorer(tmp_path, monkeypatch):
    """The very lines of docs/audit.md, on a model as Detoxify holds it: without labels of its own."""
    import types

    page = (POLICY.parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(from detoxify import.*?)```", page, flags=re.DOTALL)
    logits = classifier(tmp_path / "held", labels=tuple(f"LABEL_{at}" for at in range(6)))

    def detoxify(kind):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        assert kind == "original"
        model, tokenizer = (
            one.from_pretrained(tmp_path / "held")
            for one in (AutoModelForSequenceClassification, AutoTokenizer)
        )
        names = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"]
        return types.SimpleNamespace(model=model, tokenizer=tokenizer, class_names=names)

    monkeypatch.setitem(sys.modules, "detoxify", types.SimpleNamespace(Detoxify=detoxify))
    (tmp_path / "resources" / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    (score,) = load_scorer(AuditSettings(scorer="./resources/models/toxic-bert")).scores(
        ["a calm sea"]
    )
    assert score == pytest.approx(1 / (1 + np.exp(-logits("a calm sea")[0])), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "spoil", "message"),
    [
        ({}, lambda f: (f / "config.json").unlink(), "no config.json there"),
        ({}, lambda f: (f / "model.safetensors").unlink(), "the scorer cannot be loaded"),
        ({}, _headless, "no weights for classifier.bias"),
        ({"labels": ("good", "bad")}, lambda f: None, "its labels are good, bad"),
        ({"problem": "single_label_classification"}, lambda f: None, "multi-label classifier"),
    ],
)
def test_what_is_no_such_classifier_is_refused(tmp_path, options, spoil, message):
    classifier(tmp_path, **options)
    spoil(tmp_path)
    with pytest.raises(UserError) as error:
        load_scorer(AuditSettings(scorer=str(tmp_path)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
