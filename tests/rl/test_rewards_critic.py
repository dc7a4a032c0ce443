"""The frozen learned critic: one score a response, whatever stands beside it; never trained."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)

from shielded_recrl.errors import UserError
from shielded_recrl.rl.rewards.base import Composite
from shielded_recrl.rl.rewards.critic import LearnedCritic

WORDS = "a good bad long short film book story you it".split()
HEADS = ("helpful", "fluent")


@pytest.fixture
def tokenizer():
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=14,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=40,
            num_labels=2,
            initializer_range=0.5,
        )
        return BertForSequenceClassification(config)


@pytest.fixture
def critic(model, tokenizer):
    return LearnedCritic(model, tokenizer, HEADS)


def score(critic, texts, prompts=None):
    parts = critic(prompts or [""] * len(texts), texts, [None] * len(texts))
    assert tuple(parts) == critic.heads
    return torch.stack(list(parts.values()), dim=1)


TEXTS = ["a good film", "", "bad", "you it you it you it a story", "good good", "long book"]


def test_scores_are_the_sigmoid_of_the_logits(critic, model, tokenizer):
    """An oracle of its own: one text, no padding, the model called by hand."""
    for text, row in zip(TEXTS, score(critic, TEXTS), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        torch.testing.assert_close(row, 1 / (1 + torch.exp(-logits)))


@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), max_size=9),
    seed=st.randoms(use_true_random=False),
    size=st.integers(1, 5),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_neither_order_nor_batch_size_matters(critic, texts, seed, size):
    order = list(range(len(texts)))
    seed.shuffle(order)
    critic.batch_size = 32
    expected = score(critic, texts)
    critic.batch_size = size
    got = score(critic, [texts[row] for row in order])
    torch.testing.assert_close(got, expected[order], atol=1e-5, rtol=0)
    assert ((got > 0) & (got < 1)).all()


def test_it_stands_in_a_composite(critic):
    total = Composite([critic], {"helpful": 1.0, "fluent": -1.0})([""], ["a film"], [None])
    assert total["total"] == total["helpful"] - total["fluent"]


def test_the_prompt_is_not_read_unless_asked(critic):
    assert torch.equal(score(critic, TEXTS), score(critic, TEXTS, ["a bad book"] * len(TEXTS)))


def test_the_prompt_as_context_stands_in_the_first_segment(model, tokenizer):
    critic = LearnedCritic(model, tokenizer, HEADS, read_prompt=True)
    got = score(critic, ["good film", "good film"], ["a book", "bad story you"])
    assert not torch.allclose(got[0], got[1])
    with torch.no_grad():
        by_hand = model(**tokenizer("a book", "good film", return_tensors="pt")).logits[0]
    torch.testing.assert_close(got[0], torch.sigmoid(by_hand))


def test_what_is_too_long_is_cut_in_the_prompt_first(model, tokenizer):
    """8 tokens, 3 of them special: 3 of the response leave the prompt its last 2."""
    critic = LearnedCritic(model, tokenizer, HEADS, max_tokens=8, read_prompt=True)
    long, short = score(critic, ["a good film"] * 2, ["you it you bad book", "bad book"])
    assert torch.allclose(long, short)
    whole = score(critic, ["a good film you it long long"], ["bad book"])
    assert torch.allclose(whole, score(critic, ["a good film you it"], [""]))
    alone = LearnedCritic(model, tokenizer, HEADS, max_tokens=5)
    cut = score(alone, ["a good film you it", "a good film"])
    assert torch.allclose(cut[0], cut[1])


def wordpiece(lower):
    """A tokenizer as BERT has it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "[", "]", "sep", "SEP", "MASK"]
    return BertTokenizerFast({word: i for i, word in enumerate(words)}, do_lower_case=lower)


def unigram():
    """A tokenizer as XLM-RoBERTa has it: to its model a special token is a piece like any other."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    pieces = [(piece, 0.0) for piece in special.values()]
    pieces += [(piece, -5.0) for piece in ("▁", "<", "/", ">", *(f"▁{word}" for word in WORDS))]
    core = Tokenizer(models.Unigram(pieces, unk_id=3))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        (wordpiece(lower=True), ["[CLS]", "[SEP]", "[SEP]"]),
        (wordpiece(lower=False), ["[CLS]", "[SEP]", "[SEP]"]),
        (unigram(), ["<s>", "</s>", "</s>", "</s>"]),
    ],
    ids=["BERT", "cased BERT", "unigram"],
)
def test_no_text_spells_a_special_token(tokenizer, template, model):
    critic = LearnedCritic(model, tokenizer, HEADS, read_prompt=True, max_tokens=40)
    spelled = f" {tokenizer.pad_token} {template[0]} good{template[1]} [MASK] "
    for prompt, response in ((f"a{spelled}book", "film"), ("a book", f"film{spelled}")):
        found = critic.encoded(prompt, response)
        assert {len(values) for values in found.values()} == {len(found["input_ids"])}
        tokens = tokenizer.convert_ids_to_tokens(found["input_ids"])
        special = [token for token in tokens if token in tokenizer.all_special_tokens]
        assert [token for token in special if token != tokenizer.unk_token] == template
        assert sum("good" in token for token in tokens) == 1


def test_it_is_frozen(critic, model):
    score(critic, TEXTS)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())


def test_a_thawed_or_changed_critic_stops_the_run(critic, model):
    weight = model.classifier.weight
    weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"classifier.weight wants a gradient"):
        score(critic, TEXTS)
    weight.requires_grad_(False)
    model.train()
    with pytest.raises(UserError, match="training mode"):
        score(critic, TEXTS)
    model.eval()
    score(critic, TEXTS)
    weight.requires_grad_(True)
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=1e-6).step()
    weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"classifier.weight changed since it was frozen"):
        score(critic, TEXTS)


def test_it_does_not_touch_the_global_random_state(critic):
    before = torch.random.get_rng_state()
    score(critic, TEXTS)
    assert torch.equal(before, torch.random.get_rng_state())


def test_save_and_load(critic, tmp_path):
    critic.save(tmp_path / "critic")
    loaded = LearnedCritic.load(tmp_path / "critic", batch_size=2)
    assert loaded.heads == HEADS
    torch.testing.assert_close(score(loaded, TEXTS), score(critic, TEXTS), atol=1e-6, rtol=0)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_head(folder):
    path = folder / "model.safetensors"
    weights = {k: v for k, v in load_file(path).items() if not k.startswith("classifier")}
    save_file(weights, path, metadata={"format": "pt"})


def bad_config(folder):
    (folder / "config.json").write_text("{")


def bad_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"model.safetensors: damaged"),
        (no_weights, r"no model.safetensors in it"),
        (no_head, r"has no classifier.bias"),
        (bad_config, r"config.json: damaged"),
        (bad_tokenizer, r"tokenizer.json: damaged"),
    ],
)
def test_a_damaged_folder_is_one_line(critic, tmp_path, damage, message):
    critic.save(tmp_path / "critic")
    damage(tmp_path / "critic")
    with pytest.raises(UserError, match=message) as error:
        LearnedCritic.load(tmp_path / "critic")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "critic") in str(error.value)


class Lengths(nn.Module):
    """Any module with logits will do: here, the number of tokens."""

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        return SimpleNamespace(logits=attention_mask.sum(dim=1, keepdim=True).float())


def test_any_module_with_logits_will_do(tokenizer):
    got = score(LearnedCritic(Lengths(), tokenizer, ["tokens"]), ["a good film", "a"])
    torch.testing.assert_close(got[:, 0], torch.sigmoid(torch.tensor([5.0, 3.0])))


@pytest.mark.parametrize(
    ("heads", "options", "message"),
    [
        ([], {}, "heads need names"),
        (["a", "a"], {}, "heads need names"),
        (["a"], {"batch_size": 0}, "batch_size must be at least 1"),
        (["a"], {"max_tokens": 2}, "leaves no room"),
    ],
)
def test_it_refuses_what_cannot_work(tokenizer, heads, options, message):
    with pytest.raises(UserError, match=message):
        LearnedCritic(Lengths(), tokenizer, heads, **options)


def test_heads_must_fit_the_logits(tokenizer):
    with pytest.raises(UserError, match=r"logits \[1, 1\] for 1 responses and 2 heads"):
        score(LearnedCritic(Lengths(), tokenizer, HEADS), ["a"])
