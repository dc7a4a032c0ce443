"""The critic: it learns what judges said, is refused where it does not, and stays as it was saved."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from shielded_recrl.dialogue import critic as command
from shielded_recrl.dialogue.corpus.dialogues import Dialogues, Turn
from shielded_recrl.dialogue.critique.gate import gate, is_plain, report_of_critic
from shielded_recrl.dialogue.critique.judged import KEYS, columns, load_judged, save_judged
from shielded_recrl.dialogue.critique.model import (
    Critic,
    context_text,
    new_encoder,
    pretrained_encoder,
)
from shielded_recrl.dialogue.critique.training import fit
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.settings import CriticTrainingSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.files import read_json
from tiny_dialogues import write_dialogues

SMALL = CriticTrainingSettings(
    vocabulary=320,
    hidden_size=32,
    layers=1,
    heads=2,
    max_tokens=48,
    epochs=6,
    batch_size=16,
    learning_rate=5e-3,
    bootstrap=100,
)
KINDS = ("gold", "sampled", "corrupted:cut", "corrupted:empty")


def score(text):
    """What a judge of words says; each head has a word of its own."""
    words = text.lower().split()
    if not words:
        return [0.0] * len(HEADS)
    marks = ["great", "seen", "<movie>", "?"]
    heads = [0.9 if any(mark in word for word in words) else 0.2 for mark in marks]
    return [*heads, float(np.mean(heads)) * min(1.0, len(words) / 4)]


def write_judged(folder, relabel=None):
    """Judged responses to the tiny dialogues; `relabel` changes the scores [n, 5]."""
    paths = write_dialogues(folder, 120)
    rows = []
    for dialogue in Dialogues.load(paths.data).all:
        for place in (1, 3):
            gold = dialogue.turns[place].text
            sampled = (
                gold.replace("?", ".") if dialogue.index % 2 else gold.replace("<movie>", "it")
            )
            texts = (gold, sampled, gold[: len(gold) // 3], "")
            rows += [
                (dialogue.index, place, dialogue.split, kind, text)
                for kind, text in zip(KINDS, texts, strict=True)
            ]
    table = pl.DataFrame(rows, schema=KEYS, orient="row")
    scores = np.array([score(text) for text in table["text"]], dtype=np.float32)
    scores = scores if relabel is None else relabel(scores, table)
    named = {name: scores[:, place] for place, name in enumerate(columns("rules"))}
    blind = dict.fromkeys(columns("unseen"), pl.lit(None, pl.Float32))
    save_judged(folder / "judged.parquet", table.with_columns(**named, **blind))
    return paths


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


def split(folder):
    """Judged responses by split."""
    table, dialogues = load_judged(folder / "judged.parquet"), Dialogues.load(folder / "data")
    return command.split_rows(table, dialogues, SMALL.judges, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with tables, and a critic that passed."""
    folder = tmp_path_factory.mktemp("critic")
    paths = write_judged(folder)
    train(folder, paths.data)
    return folder


@pytest.fixture(scope="module")
def critic(trained):
    return Critic.load(trained / "critic")


CONTEXT = (Turn("seeker", "Hi! Any film like <movie> please?", (1,)),)


def test_the_report_tells_what_was_learned(trained):
    report = read_json(trained / "critic.json")
    for head in HEADS:
        row = report["heads"][head]
        assert row["mse"] < row["mse_mean"]
        assert 0 < row["gain"]["low"] <= row["gain"]["mean"] <= row["gain"]["high"]
        assert row["gain"]["mean"] == pytest.approx(row["mse_mean"] - row["mse"])
    assert set(report["corruptions"]) == {"cut", "empty"}
    assert all(row["share"]["low"] > 0.5 for row in report["corruptions"].values())
    assert report["corruptions"]["empty"]["pairs"] == report["dialogues"]["test"] * 2
    assert report["dialogues"] == {"train": 84, "valid": 12, "test": 24}
    assert report["rows"]["test"] == 24 * 2 * len(KINDS)
    assert min(row["valid_loss"] for row in report["training"]) == pytest.approx(
        report["training"][report["epoch"] - 1]["valid_loss"]
    )
    assert report["learned_from"] == ["rules"]


def test_the_encoder_is_trained_and_not_the_heads_alone(trained, critic):
    rows = split(trained)["train"]
    texts = [context_text(context, SMALL.context_turns) for context in rows.contexts]
    untrained, _ = new_encoder([*texts, *rows.texts], SMALL, seed=1)
    before, after = (model.base_model.state_dict() for model in (untrained, critic.learned.model))
    assert before.keys() == after.keys()
    weights = [name for name in before if before[name].ndim > 1]
    assert weights
    for name in weights:
        change = (after[name] - before[name]).norm() / before[name].norm()
        assert change > 0.01, name
    assert read_json(trained / "critic.json")["encoder_change"] > 0.01


def test_scores_follow_the_judge(critic):
    texts = ["Have you seen <movie>?", "You are welcome.", "", "  "]
    scores = critic([CONTEXT] * 4, texts)
    assert scores.shape == (4, 5)
    assert scores.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores[0] > scores[1])[1:].all()
    assert not scores[2:].any()


def test_a_score_is_of_its_own_row(critic):
    texts = ["Have you seen <movie>?", "Try <movie>, it is great.", "<movie> is fun!"] * 30
    together = critic([CONTEXT] * 90, texts)
    assert torch.allclose(together[:3], critic([CONTEXT] * 3, texts[:3]), atol=1e-5)
    assert torch.allclose(together[:3], together[87:], atol=1e-5)


def test_the_loaded_critic_is_frozen(trained):
    loaded = Critic.load(trained / "critic")
    assert not any(weight.requires_grad for weight in loaded.learned.model.parameters())
    with torch.no_grad():
        next(loaded.learned.model.parameters()).add_(1)
    with pytest.raises(UserError, match="changed since it was frozen"):
        loaded([CONTEXT], ["Hi."])


def test_held_out_rows_teach_nothing_and_the_same_seed_gives_the_same_bytes(trained, tmp_path):
    paths = write_judged(tmp_path)
    table = load_judged(tmp_path / "judged.parquet")
    other = pl.when(pl.col("split") == "test")
    save_judged(
        tmp_path / "judged.parquet",
        table.with_columns(
            other.then(pl.col(name) * 0.9).otherwise(pl.col(name)).alias(name)
            for name in columns("rules")
        ),
    )
    train(tmp_path, paths.data)
    one, two = (folder / "critic/model.safetensors" for folder in (trained, tmp_path))
    assert one.read_bytes() == two.read_bytes()
    assert (trained / "critic.json").read_bytes() != (tmp_path / "critic.json").read_bytes()


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


def held_out(pairs=40):
    """Rows, scores, and the critic that knows them."""
    table = pl.DataFrame(
        [
            (pair // 2, pair, "test", kind, "Some text")
            for pair in range(pairs)
            for kind in ("gold", "sampled", "corrupted:cut")
        ],
        schema=KEYS,
        orient="row",
    )
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.5, 0.9, (len(table), len(HEADS)))
    scores[2::3] -= 0.4
    return table, scores


def passed(table, scores, predicted):
    gate(report_of_critic(table, scores, predicted, scores[is_plain(table)].mean(axis=0), 200, 0))


def test_the_gate_lets_pass_who_knows():
    table, scores = held_out()
    passed(table, scores, scores)
    passed(table, scores, scores + np.random.default_rng(1).normal(0, 0.05, scores.shape))


def test_the_gate_stops_who_tells_broken_from_whole_and_nothing_else():
    table, scores = held_out()
    predicted = np.where(is_plain(table)[:, None], 0.7, 0.3) * np.ones_like(scores)
    with pytest.raises(UserError, match=r"^critic: empathy is no better than the mean"):
        passed(table, scores, predicted)


def test_a_fault_that_is_not_held_out_is_one_line(tmp_path):
    paths = write_judged(tmp_path)
    table = load_judged(tmp_path / "judged.parquet")
    of_test = (pl.col("split") == "test") & (pl.col("kind") == "corrupted:cut")
    save_judged(tmp_path / "judged.parquet", table.filter(~of_test))
    with pytest.raises(UserError, match=r"no response of test is corrupted:cut"):
        train(tmp_path, paths.data)


def test_faults_without_a_persons_response_are_one_line():
    table, scores = held_out()
    left = (table["kind"] != "gold").to_numpy()
    with pytest.raises(UserError, match=r"0 held-out pairs .* corrupted:cut"):
        passed(table.filter(left), scores[left], scores[left])


@pytest.mark.parametrize("head", HEADS)
def test_the_gate_stops_a_head_that_is_the_mean(head):
    table, scores = held_out()
    predicted = scores.copy()
    predicted[:, HEADS.index(head)] = scores[:, HEADS.index(head)].mean()
    with pytest.raises(UserError, match=f"^critic: {head} is no better than the mean"):
        passed(table, scores, predicted)


def test_the_gate_stops_what_may_be_chance():
    """A head that is better than the mean, but by no more than luck."""
    table, scores = held_out(4)
    rng = np.random.default_rng(3)
    predicted = scores.copy()
    predicted[:, 0] = scores[:, 0].mean() + 0.3 * rng.normal(0, 0.2, len(table))
    report = report_of_critic(table, scores, predicted, scores.mean(axis=0), 200, 0)
    assert not report["heads"]["empathy"]["gain"]["low"] > 0
    with pytest.raises(UserError, match="empathy"):
        gate(report)


def test_the_gate_stops_who_likes_a_fault():
    table, scores = held_out()
    predicted = scores.copy()
    # Nearly right in squares, and wrong in order.
    predicted[2::3, -1] = predicted[0::3, -1] + 0.01
    scores[2::3, -1] = predicted[2::3, -1] - 0.02
    with pytest.raises(UserError, match=r"with the fault `cut` in a share 0\.0000"):
        passed(table, scores, predicted)


def test_knowing_what_is_empty_does_not_pass():
    table, scores = held_out()
    text = pl.when(pl.col("kind") == "gold").then(pl.col("text")).otherwise(pl.lit(""))
    table = table.with_columns(text=text)
    scores[table["text"].to_numpy() == ""] = 0
    predicted = np.where(scores > 0, scores[0::3].mean(axis=0), 0)
    with pytest.raises(UserError, match="no better than the mean"):
        passed(table, scores, predicted)


def test_held_out_scores_that_do_not_vary_are_one_line():
    table, scores = held_out()
    scores[:, 1] = 0.25
    with pytest.raises(UserError, match=r"give informativeness 0\.25 to every held-out response"):
        passed(table, scores, scores)


def test_an_encoder_from_a_folder_is_trained(trained, tmp_path):
    texts = load_judged(trained / "judged.parquet")["text"].to_list()
    tokenizer = train_tokenizer(iter(texts), 320)
    torch_state = torch.random.get_rng_state()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    torch.random.set_rng_state(torch_state)
    rows = split(trained)
    model, reader = pretrained_encoder(tmp_path / "encoder", 48, seed=0)
    one_epoch = SMALL.model_copy(update={"epochs": 1})
    found = fit(model, reader, rows["valid"], rows["test"], one_epoch, seed=0)
    before = load_file(tmp_path / "encoder/model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(before[name], model.state_dict()[f"bert.{name}"])
    assert found.encoder_change > 0
    Critic(model, reader, 2, 48).save(tmp_path / "critic")
    assert Critic.load(tmp_path / "critic")([CONTEXT], ["Hi."]).shape == (1, 5)


def test_an_encoder_that_is_not_whole_is_one_line(trained, tmp_path):
    folder = shutil.copytree(trained / "critic", tmp_path / "encoder")
    with pytest.raises(UserError, match="max_tokens: 200 are more than the 128 positions"):
        pretrained_encoder(folder, 200, seed=0)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.attn.Wo.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"has no model\.layers\.0\.attn\.Wo\.weight of the encoder"
    ):
        pretrained_encoder(folder, 48, seed=0)


@pytest.mark.parametrize("lack", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_folder_without_an_encoder_is_one_line(trained, tmp_path, lack):
    folder = shutil.copytree(trained / "critic", tmp_path / "encoder")
    (folder / lack).unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError) as caught:
        pretrained_encoder(folder, 48, seed=0)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda raw: raw[: len(raw) // 2]),
        ("model.safetensors", lambda raw: raw[:-3] + bytes([raw[-3] ^ 64]) + raw[-2:]),
        ("model.safetensors", None),
        ("config.json", lambda raw: b"{"),
        ("config.json", lambda raw: raw.replace(b'"context_turns": 2', b'"context_turns": 3')),
        ("tokenizer.json", lambda raw: raw[:100]),
    ],
)
def test_a_damaged_critic_is_one_line(trained, tmp_path, name, damage):
    folder = shutil.copytree(trained / "critic", tmp_path / "critic")
    path = folder / name
    if damage is None:
        path.unlink()
    else:
        raw = path.read_bytes()
        assert damage(raw) != raw
        path.write_bytes(damage(raw))
    with pytest.raises(UserError) as caught:
        Critic.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_critic_of_other_heads_is_none(trained, tmp_path):
    learned = Critic.load(trained / "critic").learned
    learned.heads = ("a", "b", "c", "d", "e")
    learned.save(tmp_path / "other")
    with pytest.raises(UserError, match="no critic of the heads empathy"):
        Critic.load(tmp_path / "other")


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


@pytest.mark.parametrize("turns", [0, 1, 2, 9])
def test_the_context_that_is_read(turns):
    context = [Turn("seeker", "Hi", ()), Turn("recommender", "Hello!", ()), Turn("seeker", "A", ())]
    whole = ["seeker: Hi", "recommender: Hello!", "seeker: A"]
    assert context_text(context, turns) == " ".join(whole[max(0, 3 - turns) :] if turns else [])
