"""The embedded base LM: its examples, its loss, its files."""

import math
import random
import re
import subprocess
import sys
from itertools import islice

import polars as pl
import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer import pretrain
from shielded_recrl.explainer.base import load_base, load_tokenizer
from shielded_recrl.explainer.prompts import PromptBuilder, load_items
from shielded_recrl.explainer.settings import PretrainSettings
from shielded_recrl.explainer.texts import load_styles
from shielded_recrl.files import sha256
from shielded_recrl.settings import flags


@pytest.fixture(scope="module")
def stream(dataset, templates, prompt, tiny, base):
    """Examples as `pretrain` makes them, and what they are made with."""
    tokenizer = load_tokenizer(base)
    builder = PromptBuilder(tokenizer, templates, load_items(dataset / "items.parquet"), prompt)
    rows = pretrain.examples(
        pretrain.load_sequences(dataset / "train.parquet"),
        builder,
        load_styles(templates / "explanations.yaml"),
        32,
        tiny,
        random.Random(0),
    )
    return list(islice(rows, 60)), tokenizer


def test_pairs_are_a_recent_history_and_a_later_item():
    sequences = [[1, 2, 3, 4], [7, 8]]
    drawn = set()
    for history, target in islice(pretrain.pairs(sequences, 2, random.Random(0)), 200):
        drawn.add((*history, target))
    assert drawn == {(1, 2), (1, 2, 3), (2, 3, 4), (7, 8)}


def test_users_with_one_item_are_left_out(tmp_path):
    path = tmp_path / "train.parquet"
    columns = {"user": [2, 1, 2, 3], "item": [5, 6, 4, 9], "order": [1, 0, 0, 0]}
    frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Int32))
    frame.write_parquet(path)
    assert pretrain.load_sequences(path) == [[4, 5]]
    frame.filter(pl.col("user") == 1).write_parquet(path)
    with pytest.raises(UserError, match="no user has two items"):
        pretrain.load_sequences(path)


def test_weights_separate_prefix_request_and_explanation():
    settings = PretrainSettings(request_weight=0.5, prefix_weight=0.25)
    row = pretrain.example((1, 10, 11), (1, 10, 11, 20, 21), (30, 31, 2), settings)
    assert row.ids == (1, 10, 11, 20, 21, 30, 31, 2)
    assert row.weights == (0, 0.25, 0.25, 0.5, 0.5, 1, 1, 1)


def test_an_example_is_a_prompt_and_a_whole_explanation(stream):
    rows, tokenizer = stream
    for row in rows:
        text = tokenizer.decode(row.ids)
        assert re.fullmatch(r"<s>Liked: .+\nNext: .+ \(.+\)\nWhy: [^\n]+\.</s>", text)
        answer = [token for token, weight in zip(row.ids, row.weights, strict=True) if weight == 1]
        assert tokenizer.decode(answer) == " " + text.split("Why: ")[1]
        assert len(answer) <= 32


def test_the_loss_counts_each_token_with_its_weight():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3, 4], [1, 4, 0, 0]])
    weights = torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.0, 1.0, 0.0, 0.0]])
    log = logits.log_softmax(-1)
    by_hand = -(log[0, 1, 3] + 0.5 * log[0, 2, 4] + log[1, 0, 4]) / 2.5
    torch.testing.assert_close(pretrain.weighted_loss(logits, ids, weights), by_hand)


def test_masked_tokens_do_not_train_the_model(base):
    """With weight 0 on the prompt, the gradient of the logits there is zero."""
    settings = PretrainSettings(request_weight=0, prefix_weight=0)
    row = pretrain.example((1, 10), (1, 10, 20), (30, 2), settings)
    ids, weights = pretrain.collate([row, pretrain.example((1,), (1, 9), (2,), settings)], pad=0)
    assert ids.tolist() == [[1, 10, 20, 30, 2], [1, 9, 2, 0, 0]]
    logits = torch.zeros(2, 5, 400, requires_grad=True)
    pretrain.weighted_loss(logits, ids, weights).backward()
    trained = logits.grad.abs().sum(-1) > 0
    assert trained.tolist() == [
        [False, False, True, True, False],
        [False, True, False, False, False],
    ]


def test_batches_are_every_example_once_and_of_similar_length():
    rng = random.Random(0)
    rows = [pretrain.Example((n,) * rng.randint(2, 60), (n,)) for n in range(pretrain.POOL * 4)]
    drawn = list(islice(pretrain.batches(iter(rows), 4, rng), pretrain.POOL))
    assert sorted(row.weights[0] for batch in drawn for row in batch) == list(range(len(rows)))
    assert (
        max(
            max(map(len, spread)) - min(map(len, spread))
            for spread in [[row.ids for row in batch] for batch in drawn]
        )
        < 20
    )


def test_the_learning_rate_warms_up_and_decays():
    rates = [pretrain.learning_rate_factor(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates == rates[:5] + sorted(rates[5:], reverse=True)
    assert rates[52] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 47 / 95)))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_the_command_writes_a_model_that_loads_and_generates(
    dataset, templates, tiny, prompt, tmp_path
):
    out = tmp_path / "model"
    command = [sys.executable, "-X", "importtime", "-m", "shielded_recrl.explainer", "pretrain"]
    command += ["--data", dataset]
    command += ["--templates", templates, "--out", out, "--explanation-tokens", "32"]
    command += f"{flags(tiny)} {flags(prompt)}".split()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"parameters, vocabulary \d+, train loss \d\.\d+", done.stdout)
    assert "pretrain: 100%" in done.stderr
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "torch" in imported
    assert "peft" not in imported
    model = load_base(out, "fp32", torch.device("cpu"))
    tokenizer = load_tokenizer(out)
    assert model.config.tie_word_embeddings
    assert len(tokenizer) == model.config.vocab_size <= 400
    for config in (model.config, model.generation_config):
        assert config.pad_token_id == tokenizer.pad_token_id == 0
        assert config.bos_token_id == tokenizer.bos_token_id == 1
        assert config.eos_token_id == tokenizer.eos_token_id == 2
    ids = torch.tensor([tokenizer.encode("Liked: é ☃\n", add_special_tokens=False)])
    assert tokenizer.decode(ids[0]) == "Liked: é ☃\n"
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert ids.shape[1] < written.shape[1] <= ids.shape[1] + 4


def test_training_lowers_the_loss(stream, tiny):
    rows, tokenizer = stream
    settings = tiny.model_copy(update={"steps": 60, "learning_rate": 1e-2})
    model = pretrain.new_model(tokenizer, settings, seed=0)
    batches = pretrain.batches(iter(rows * 10), 8, random.Random(0))
    assert pretrain.train(model, batches, settings) < 0.7 * math.log(len(tokenizer))


def test_equal_seeds_give_equal_bytes(dataset, templates, prompt, tiny, base, tmp_path):
    options = {"data": dataset, "templates": templates, "prompt": prompt, "settings": tiny}
    pretrain.main(out=tmp_path / "again", **options)
    assert sha256(tmp_path / "again") == sha256(base)
    pretrain.main(out=tmp_path / "other", seed=43, **options)
    assert sha256(tmp_path / "other") != sha256(base)


def test_the_test_split_leaves_no_trace(make_dataset, templates, prompt, tiny, base, tmp_path):
    data = make_dataset(tmp_path / "data", unseen="Wholly Different Name")
    pretrain.main(
        data=data, templates=templates, out=tmp_path / "model", prompt=prompt, settings=tiny
    )
    assert sha256(tmp_path / "model") == sha256(base)


def test_nothing_is_left_of_a_failed_run(dataset, templates, prompt, tiny, tmp_path):
    options = {"data": dataset, "templates": templates, "out": tmp_path / "model"}
    with pytest.raises(UserError, match="explanation_tokens: 3 is too short"):
        pretrain.main(**options, explanation_tokens=3, prompt=prompt, settings=tiny)
    with pytest.raises(UserError, match=r"explainer\.pretrain\.heads: 3 heads"):
        pretrain.main(**options, prompt=prompt, settings=tiny.model_copy(update={"heads": 3}))
    assert list(tmp_path.iterdir()) == []
