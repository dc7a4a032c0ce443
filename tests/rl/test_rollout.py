"""Sampling: the distribution that is sampled is the one that is scored."""

from types import SimpleNamespace

import pytest
import torch

from shielded_recrl.explainer.lm import pad_left
from shielded_recrl.rl.ppo import token_logprobs
from shielded_recrl.rl.rollout import decode, nucleus, response_logits, sample
from tiny_world import prompts, tiny_llama, with_adapter

TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=2)
# Cold enough that sampling is greedy: the draws of other rows no longer matter.
COLD = 1e-4


@pytest.fixture(scope="module")
def model():
    return with_adapter(tiny_llama())


@pytest.fixture(scope="module")
def rollout(model):
    return draw(model, prompts(5, 2, 9))


def draw(model, rows, tokenizer=TOKENIZER, tokens=7, temperature=1.3, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return sample(model, rows, tokenizer, tokens, temperature, generator, **options)


def scored_alone(model, rollout, rows) -> None:
    """Check the scores of a rollout against a forward of each unpadded row, token by token."""
    with torch.no_grad():
        logits, _ = response_logits(model, rollout)
        batched, _ = token_logprobs(logits, rollout.tokens, 1.3)
        for row, prompt in enumerate(rows):
            ids = list(prompt)
            for t in range(int(rollout.response[row].sum())):
                token = rollout.tokens[row, t]
                alone = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1] / 1.3, -1)
                assert batched[row, t].item() == pytest.approx(alone[token].item(), abs=1e-5)
                ids.append(int(token))


def test_scores_equal_those_of_decoding_one_row_at_a_time(model, rollout):
    """Left padding and the cache change no probability."""
    scored_alone(model, rollout, prompts(5, 2, 9))


def test_absolute_positions_count_from_the_first_real_token():
    """Llama's positions are relative and would forgive an offset; GPT-2's are not."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    ).eval()
    with torch.no_grad():
        model.transformer.wpe.weight.normal_(0, 1)
        model.transformer.wte.weight.normal_(0, 0.5)
    rows = prompts(5, 2, 9)
    scored_alone(model, draw(model, rows), rows)
    together = draw(model, rows, temperature=COLD)
    for index, row in enumerate(rows):
        alone = draw(model, [row], temperature=COLD)
        assert torch.equal(together.tokens[index], alone.tokens[0])


def test_the_ratio_of_the_first_minibatch_is_exactly_one(model, rollout):
    with torch.no_grad():
        old, _ = token_logprobs(response_logits(model, rollout)[0], rollout.tokens, 1.3)
    new, _ = token_logprobs(response_logits(model, rollout)[0], rollout.tokens, 1.3)
    assert new.requires_grad
    assert torch.equal((new - old).exp(), torch.ones_like(old))


def test_tokens_are_drawn_from_the_scored_distribution(model):
    """4,000 draws of one token: the frequencies fit the scored probabilities (chi-squared)."""
    from scipy import stats

    rows = [prompts(1, 6, 6)[0]] * 4000
    one = draw(model, rows, tokens=1)
    with torch.no_grad():
        logits, _ = response_logits(model, one.rows(slice(1)))
    expected = (logits[0, 0].double() / 1.3).softmax(-1) * len(rows)
    counts = torch.bincount(one.tokens[:, 0], minlength=len(expected)).double()
    common = expected >= 5
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    assert common.sum() > 20
    assert stats.chisquare(seen.numpy(), wanted.numpy()).pvalue > 1e-3


def test_a_batch_of_mixed_lengths_equals_single_rows(model):
    rows = prompts(6, 1, 11, seed=4)
    together = draw(model, rows, temperature=COLD)
    for index, row in enumerate(rows):
        alone = draw(model, [row], temperature=COLD)
        length = int(alone.response.sum())
        assert together.response[index].sum() == length
        assert torch.equal(together.tokens[index, :length], alone.tokens[0, :length])


def test_the_generator_decides_and_nothing_global_changes(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = draw(model, prompts(3, 2, 5), seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(first.ids, draw(model, prompts(3, 2, 5), seed=1).ids)
    assert not torch.equal(first.tokens, draw(model, prompts(3, 2, 5), seed=2).tokens)


def ends_with(token: int) -> SimpleNamespace:
    return SimpleNamespace(pad_token_id=0, eos_token_id=token)


def first_of_its_kind(tokens: list[int]) -> int:
    """The latest position whose token did not occur before it."""
    return max(i for i, token in enumerate(tokens) if token not in tokens[:i])


def test_sampling_stops_when_all_have_ended(model):
    row = prompts(1, 4, 4, seed=9)
    free = draw(model, row, temperature=COLD).tokens[0].tolist()
    assert draw(model, row, temperature=COLD).ended.tolist() == [False]
    last = first_of_its_kind(free)
    ended = draw(model, row * 3, ends_with(free[last]), temperature=COLD)
    assert ended.tokens.tolist() == [free[: last + 1]] * 3
    assert ended.ended.all()
    assert ended.response.all()


def test_rows_that_ended_early_are_padded_and_masked(model):
    rows = prompts(8, 2, 9, seed=2)
    free = draw(model, rows, temperature=COLD, tokens=6)
    # A token some rows write in time and others do not.
    token = next(
        int(t) for t in free.tokens.unique() if 0 < (free.tokens == t).any(dim=1).sum() < len(rows)
    )
    got = draw(model, rows, ends_with(token), temperature=COLD, tokens=6)
    assert got.ended.any()
    assert not got.ended.all()
    for row in range(len(rows)):
        written = free.tokens[row].tolist()
        length = written.index(token) + 1 if token in written else len(written)
        assert bool(got.ended[row]) == (token in written)
        assert got.tokens[row].tolist() == written[:length] + [0] * (6 - length)
        assert got.response[row].tolist() == [1.0] * length + [0.0] * (6 - length)
        assert got.mask[row].tolist()[-6:] == [1] * length + [0] * (6 - length)


def test_what_stands_in_padding_is_never_read(model):
    rows = prompts(8, 2, 9, seed=2)
    rollout = draw(model, rows, ends_with(int(draw(model, rows).tokens[0, 1])))
    noise = torch.randint(3, 300, rollout.ids.shape, generator=torch.Generator().manual_seed(0))
    garbled = rollout._replace(ids=torch.where(rollout.mask.bool(), rollout.ids, noise))
    assert (garbled.ids != rollout.ids).any()
    real = rollout.response.bool()
    with torch.no_grad():
        expected, hidden = (x[real] for x in response_logits(model, rollout))
        got, states = (x[real] for x in response_logits(model, garbled))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(states, hidden, atol=1e-5, rtol=0)


def test_the_nucleus_by_hand():
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()

    def kept(top_p: float) -> list[bool]:
        return nucleus(logits, top_p)[0].isfinite().tolist()

    assert kept(0.4) == [False, True, False, False]
    assert kept(0.6) == [False, True, True, False]
    # Of equal tokens the first one completes the set.
    assert kept(0.85) == [True, True, True, False]
    assert kept(0.95) == [True] * 4
    assert nucleus(logits, 1.0) is logits


def test_the_nucleus_leaves_relative_odds_alone_and_binds_sampling(model):
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    got = nucleus(logits, 0.5)
    inside = got.isfinite()
    assert torch.equal(got[inside], logits[inside])
    mass = (logits.softmax(-1) * inside).sum(-1)
    smallest = torch.where(inside, logits.softmax(-1), 1).min(-1).values
    assert (mass >= 0.5).all()
    assert (mass - smallest < 0.5).all()
    # A nucleus of one token is greedy decoding, whatever the seed.
    rows = prompts(3, 3, 6)
    greedy = draw(model, rows, temperature=COLD)
    assert torch.equal(draw(model, rows, top_p=1e-6, seed=8).ids, greedy.ids)


def test_decode_drops_padding_and_special_tokens(world):
    from shielded_recrl.explainer.base import load_tokenizer
    from shielded_recrl.rl.rollout import Rollout

    tokenizer = load_tokenizer(world.base)
    text = tokenizer.encode(" Give Harbor Road 3 a try.", add_special_tokens=False)
    row = [*text, tokenizer.eos_token_id]
    response = torch.tensor([[1.0] * len(row) + [0.0] * 2, [1.0] + [0.0] * (len(row) + 1)])
    tokens = torch.tensor([row + text[:2], [tokenizer.eos_token_id] + [7] * (len(row) + 1)])
    rollout = Rollout(
        tokens, response.long(), response, torch.tensor([True, True]), torch.tensor([1, 1])
    )
    assert decode(rollout, tokenizer) == ["Give Harbor Road 3 a try.", ""]


def test_pad_left():
    ids, mask = pad_left([(5,), (6, 7, 8)], pad=0)
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
