"""An activated adapter acts after the prefix: the prefix's states, and so the ranking, stay put."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from shielded_recrl.explainer.base import load_base, load_tokenizer
from shielded_recrl.explainer.init import invocation_tokens
from shielded_recrl.explainer.init import main as init
from shielded_recrl.explainer.lm import activation, can_merge, is_activated, prefix_states, trunk
from shielded_recrl.rl.ppo import token_logprobs
from shielded_recrl.rl.rollout import TransformersEngine, response_logits, sample
from tiny_world import tiny_llama

PREFIXES = [(5, 6, 7, 8), (9, 10, 11, 12, 13, 14), (15, 16)]
REQUESTS = [(20, 21, 22), (20, 23), (20, 24, 25, 26)]
PROMPTS = [prefix + request for prefix, request in zip(PREFIXES, REQUESTS, strict=True)]
COUNTS = [len(request) for request in REQUESTS]


class Tokenizer:
    """Only ids are needed."""

    pad_token_id, eos_token_id = 0, 2


@pytest.fixture
def model():
    """An activated adapter with a large update, on a tiny Llama."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        alora_invocation_tokens=[20],
    )
    adapted = get_peft_model(tiny_llama(), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
    return adapted.eval()


def rollout(model, temperature: float = 1.0):
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, 5)))
    return sample(model, PROMPTS, Tokenizer, uniforms, temperature, active=COUNTS)


def test_it_acts_on_the_rows_that_are_left_when_others_have_ended(model):
    uniforms = torch.from_numpy(np.random.default_rng(2).random((24, 40)))
    # Cold enough that one token is frequent.
    first = sample(model, PROMPTS * 8, Tokenizer, uniforms, 0.05, active=COUNTS * 8)

    class Ending(Tokenizer):
        eos_token_id = int(first.tokens.flatten().mode().values)

    got = sample(model, PROMPTS * 8, Ending, uniforms, 0.05, active=COUNTS * 8)
    assert 12 <= got.ended.sum() < 24
    for row in range(24):
        part = slice(row, row + 1)
        alone = sample(
            model, (PROMPTS * 8)[part], Ending, uniforms[part], 0.05, active=(COUNTS * 8)[part]
        )
        assert torch.equal(got.tokens[row, : alone.tokens.shape[1]], alone.tokens[0])


def test_one_prefill_gives_the_ranking_of_the_base_bit_for_bit(model):
    """Prefix and request go through together; the state at the prefix's end is the base's."""
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad(), activation(model, [COUNTS[0]]):
        active = trunk(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    with torch.no_grad(), model.disable_adapter():
        base = trunk(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    end = len(PREFIXES[0])
    assert torch.equal(active[:end], base[:end])
    assert (active[end:] - base[end:]).abs().min(dim=-1).values.max() > 1e-3
    assert (active[end:] - base[end:]).abs().max() > 0.1


def test_prefix_states_are_those_of_the_base_for_every_user(model):
    with model.disable_adapter():
        base = prefix_states(model, PREFIXES)
    assert torch.equal(prefix_states(model, PREFIXES), base)


def test_the_scored_distribution_is_the_sampled_one(model):
    """Cold, the cached decoding draws what a full pass finds likeliest; with the adapter off it
    draws other tokens."""

    def likeliest_are_drawn(drawn) -> bool:
        likeliest = response_logits(model, drawn)[0].argmax(-1)
        return torch.equal(likeliest[drawn.response == 1], drawn.tokens[drawn.response == 1])

    assert likeliest_are_drawn(rollout(model, 1e-4))
    with model.disable_adapter():
        base = rollout(model, 1e-4)
    assert not likeliest_are_drawn(base)


def test_a_batch_is_scored_as_each_of_its_rows(model):
    """Log-probabilities of padded rows equal those of a pass over one row alone."""
    drawn = rollout(model)
    logp = token_logprobs(response_logits(model, drawn)[0], drawn.tokens, 1.0)
    for row, (prompt, count) in enumerate(zip(PROMPTS, COUNTS, strict=True)):
        length = int(drawn.response[row].sum())
        ids = torch.tensor([[*prompt, *drawn.tokens[row, :length].tolist()]])
        with torch.no_grad(), activation(model, [count + length]):
            logits = model.get_base_model()(input_ids=ids).logits[0]
        alone = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        expected = alone.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(logp[row, :length], expected, atol=1e-4, rtol=1e-4)
        # What decoding with the cache made of it.
        torch.testing.assert_close(drawn.logp[row, :length], expected, atol=1e-4, rtol=1e-4)


def test_the_adapter_changes_what_is_written(model):
    drawn = rollout(model)
    with model.disable_adapter():
        base = response_logits(model, drawn)[0]
    assert (response_logits(model, drawn)[0] - base).abs().max() > 0.1


def test_only_tokens_after_the_prefix_pull_on_the_adapter(model):
    ids = torch.tensor([PROMPTS[1]])
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
    end = len(PREFIXES[1])
    with activation(model, [COUNTS[1]]):
        hidden = trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    assert not hidden[:, :end].requires_grad or all(
        grad is None or not grad.any()
        for grad in torch.autograd.grad(
            hidden[:, :end].sum(),
            [w for w in model.parameters() if w.requires_grad],
            retain_graph=True,
            allow_unused=True,
        )
    )
    grads = torch.autograd.grad(
        hidden[:, end:].sum(), [w for w in model.parameters() if w.requires_grad], allow_unused=True
    )
    assert any(grad is not None and grad.any() for grad in grads)


def test_micro_batches_are_scored_as_the_batch(model):
    """Counts are from the end of a row, and a micro batch ends elsewhere."""
    drawn = rollout(model)
    short = drawn._replace(
        mask=drawn.mask
        * torch.tensor([[1], [1], [0]]).logical_or(
            torch.arange(drawn.mask.shape[1]) < drawn.mask.shape[1] - 3
        )
    )
    short = short._replace(response=short.mask[:, -short.response.shape[1] :].float())
    with torch.no_grad():
        whole, _ = response_logits(model, short)
        for place in short.micro_batches(1):
            part = short.at(place)
            real = part.response.bool()
            expected = whole[place.rows, place.response][real]
            got = response_logits(model, part)[0][real]
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_it_is_never_merged_for_decoding(model):
    """Merged weights would act on the prefix as well."""
    assert not can_merge(model)
    during = []
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    weight = layer.get_base_layer().weight.clone()
    layer.register_forward_hook(
        lambda *_: during.append(torch.equal(layer.get_base_layer().weight, weight))
    )
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, 5)))
    drawn = TransformersEngine(Tokenizer)(model, PROMPTS, COUNTS, uniforms, 1.0)
    assert torch.equal(drawn.ids, rollout(model).ids)
    assert during
    assert all(during)


def test_groups_keep_each_prompt_s_count(model):
    """Groups are sorted by length, and the counts with them."""
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, 5)))
    for size in (1, 2):
        engine = TransformersEngine(Tokenizer, batch_size=size)
        drawn = engine(model, PROMPTS, COUNTS, uniforms, 1.0)
        assert drawn.request.tolist() == COUNTS
        assert torch.equal(drawn.ids, rollout(model).ids)


def test_nothing_stays_awake_after_an_error(model):
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected = trunk(model)(input_ids=ids).last_hidden_state
        with pytest.raises(RuntimeError, match="power cut"), activation(model, [len(PROMPTS[0])]):
            raise RuntimeError("power cut")
        assert torch.equal(trunk(model)(input_ids=ids).last_hidden_state, expected)


def test_other_adapters_act_everywhere():
    from tiny_world import with_adapter

    plain = with_adapter(tiny_llama())
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected = trunk(plain)(input_ids=ids).last_hidden_state
        with activation(plain, [1]):
            assert torch.equal(trunk(plain)(input_ids=ids).last_hidden_state, expected)
    assert not is_activated(plain)


def test_peft_alone_serves_a_saved_activated_adapter_as_we_do(world, tmp_path):
    """The folder names the tokens every request begins with, so PEFT finds where to begin."""
    init(
        base=world.base,
        out=tmp_path / "adapter",
        templates=world.templates,
        activated=True,
        lora_rank=4,
        lora_alpha=8,
    )
    adapted = PeftModel.from_pretrained(
        load_base(world.base, "fp32", torch.device("cpu")), tmp_path / "adapter"
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
    tokens = invocation_tokens(load_tokenizer(world.base), world.templates)
    assert adapted.active_peft_config.alora_invocation_tokens == tokens
    request = world.serving().request(1, 2)
    suffix = request.prompt[len(request.prefix) :]
    assert list(suffix[: len(tokens)]) == tokens
    ids = torch.tensor([request.prompt])
    with torch.no_grad():
        theirs = adapted(input_ids=ids).logits
        with activation(adapted, [len(suffix)]):
            ours = adapted.get_base_model()(input_ids=ids).logits
        with adapted.disable_adapter():
            base = adapted(input_ids=ids).logits
    assert torch.equal(theirs, ours)
    assert (ours - base).abs().max() > 0.1
