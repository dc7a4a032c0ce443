"""Training of the critic: the whole encoder learns, and other dialogues say when to stop."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.critic import split_rows
from shielded_recrl.dialogue.critique.judged import load_judged
from shielded_recrl.dialogue.critique.model import Critic, pretrained_encoder
from shielded_recrl.dialogue.critique.training import fit, held_back
from shielded_recrl.explainer.pretrain import train_tokenizer
from tiny_judged import SMALL, write_judged


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Judged responses of the train split."""
    folder = tmp_path_factory.mktemp("training")
    paths = write_judged(folder)
    table = load_judged(folder / "judged.parquet")
    return split_rows(table, Dialogues.load(paths.data), SMALL.judges, folder)["train"]


@pytest.mark.parametrize(("share", "dialogues"), [(0.001, 1), (0.25, 21), (0.999, 83)])
def test_whole_dialogues_are_held_back(rows, share, dialogues):
    taught, stop = held_back(rows, share, seed=1)
    ours, others = (set(part.table["dialogue"]) for part in (taught, stop))
    assert len(others) == dialogues
    assert not ours & others
    assert ours | others == set(rows.table["dialogue"])
    assert len(taught.texts) + len(stop.texts) == len(rows.texts)
    assert np.array_equal(held_back(rows, share, seed=1)[1].scores, stop.scores)
    assert set(held_back(rows, share, seed=2)[1].table["dialogue"]) != others


def test_what_is_held_back_keeps_its_own(rows):
    found = dict(
        zip(
            rows.table.select("dialogue", "turn", "kind").rows(),
            zip(rows.contexts, rows.texts, rows.scores.tolist(), strict=True),
            strict=True,
        )
    )
    for part in held_back(rows, 0.3, seed=1):
        keys = part.table.select("dialogue", "turn", "kind").rows()
        assert part.table["text"].to_list() == part.texts
        for key, *values in zip(keys, part.contexts, part.texts, part.scores.tolist(), strict=True):
            assert tuple(values) == found[key]


def test_an_encoder_from_a_folder_is_trained(rows, tmp_path):
    tokenizer = train_tokenizer(iter(rows.texts), 320)
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
    model, reader = pretrained_encoder(tmp_path / "encoder", 48, seed=0)
    one_epoch = SMALL.model_copy(update={"epochs": 1})
    stop, taught = held_back(rows, 0.8, seed=0)
    found = fit(model, reader, taught, stop, one_epoch, seed=0)
    before = load_file(tmp_path / "encoder/model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(before[name], model.state_dict()[f"bert.{name}"])
    assert found.encoder_change > 0
    Critic(model, reader, 2, 48).save(tmp_path / "critic")
    assert Critic.load(tmp_path / "critic")(rows.contexts[:1], ["Hi."]).shape == (1, 5)
