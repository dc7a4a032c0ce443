"""The critic as a model: what it reads, what it starts from, and that it stays as it was saved."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from shielded_recrl.dialogue.corpus.dialogues import Turn
from shielded_recrl.dialogue.critique.model import (
    Critic,
    context_text,
    new_encoder,
    pretrained_encoder,
)
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.errors import UserError
from tiny_judged import SMALL

CONTEXT = (Turn("seeker", "Hi! Any film like <movie> please?", (1,)),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a critic that was not trained."""
    folder = tmp_path_factory.mktemp("model") / "critic"
    texts = ["seeker: Hi! Any film like <movie> please?", "Have you seen <movie>?"]
    critic = Critic(*new_encoder(texts, SMALL, seed=1), SMALL.context_turns, SMALL.max_tokens)
    critic.save(folder)
    return folder


@pytest.fixture(scope="module")
def critic(saved):
    return Critic.load(saved)


def test_scores_are_shares_and_nothing_has_nothing(critic):
    scores = critic([CONTEXT] * 3, ["Have you seen <movie>?", "", "  "])
    assert scores.shape == (3, len(HEADS))
    assert scores.dtype == torch.float32
    assert ((scores[0] > 0) & (scores[0] < 1)).all()
    assert not scores[1:].any()


def test_a_score_is_of_its_own_row(critic):
    texts = ["Have you seen <movie>?", "Try <movie>, it is great.", "<movie> is fun!"] * 30
    together = critic([CONTEXT] * 90, texts)
    assert torch.allclose(together[:3], critic([CONTEXT] * 3, texts[:3]), atol=1e-5)
    assert torch.allclose(together[:3], together[87:], atol=1e-5)


def test_the_loaded_critic_is_frozen(saved):
    loaded = Critic.load(saved)
    assert not any(weight.requires_grad for weight in loaded.learned.model.parameters())
    with torch.no_grad():
        next(loaded.learned.model.parameters()).add_(1)
    with pytest.raises(UserError, match="changed since it was frozen"):
        loaded([CONTEXT], ["Hi."])


def test_an_encoder_that_is_not_whole_is_one_line(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "encoder")
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
def test_a_folder_without_an_encoder_is_one_line(saved, tmp_path, lack):
    folder = shutil.copytree(saved, tmp_path / "encoder")
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
def test_a_damaged_critic_is_one_line(saved, tmp_path, name, damage):
    folder = shutil.copytree(saved, tmp_path / "critic")
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


def test_a_critic_of_other_heads_is_none(saved, tmp_path):
    learned = Critic.load(saved).learned
    learned.heads = ("a", "b", "c", "d", "e")
    learned.save(tmp_path / "other")
    with pytest.raises(UserError, match="no critic of the heads empathy"):
        Critic.load(tmp_path / "other")


@pytest.mark.parametrize("turns", [0, 1, 2, 9])
def test_the_context_that_is_read(turns):
    context = [Turn("seeker", "Hi", ()), Turn("recommender", "Hello!", ()), Turn("seeker", "A", ())]
    whole = ["seeker: Hi", "recommender: Hello!", "seeker: A"]
    assert context_text(context, turns) == " ".join(whole[max(0, 3 - turns) :] if turns else [])
