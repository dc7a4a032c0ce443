"""Sampling: the distribution that is sampled is the one that is scored."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shielded_recrl.explainer.lm import pad_left
from shielded_recrl.rl.ppo import token_logprobs
from shielded_recrl.rl.rollout import (
    Decoder,
    Rollout,
    TransformersEngine,
    assembled,
    decode,
    draw,
    joined,
    nucleus,
    response_logits,
    sample,
)
from tiny_ppo import CLOSE
from tiny_world import prompts, tiny_llama, with_adapter

TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=2)
WARM = 1.3
MODEL = with_adapter(tiny_llama())
# Cold enough that sampling is greedy, whatever the uniforms.
COLD = 1e-4


@pytest.fixture(scope="module")
def model():
    return MODEL


@pytest.fixture(scope="module")
def rollout(model):
    return write(model, prompts(5, 2, 9))


def numbers(rows: int, tokens: int = 7, seed: int = 0) -> torch.Tensor:
    """Uniform numbers [rows, tokens]."""
    return torch.from_numpy(np.random.default_rng(seed).random((rows, tokens)))


def write(model, rows, tokenizer=TOKENIZER, tokens=7, temperature=WARM, seed=0, **options):
    uniforms = options.pop("uniforms", numbers(len(rows), tokens, seed))
    return sample(model, rows, tokenizer, uniforms, temperature, **options)


class TestDraw:
    """One token by inversion of the distribution function."""

    # P = 0, 1/4, 0, 3/4, 0
    LOGITS = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).log()

    @pytest.mark.parametrize(
        ("uniform", "token"),
        [(0.0, 1), (0.2499999, 1), (0.2500001, 3), (0.6, 3), (1 - 2**-53, 3)],
    )
    def test_by_hand(self, uniform, token):
        """Tokens of probability 0 are not drawn, not even at the ends."""
        assert draw(self.LOGITS, torch.tensor([uniform], dtype=torch.float64)).item() == token

    @given(seed=st.integers(0, 10**6), uniform=st.sampled_from([0.0, 1 - 2**-53]))
    @settings(max_examples=50, deadline=None)
    def test_the_ends_of_any_distribution_are_its_first_and_last_token(self, seed, uniform):
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(1, 40, generator=generator)
        logits[torch.rand(1, 40, generator=generator) < 0.5] = -torch.inf
        logits[0, 20] = 0.0
        possible = logits[0].isfinite().nonzero()[:, 0].tolist()
        token = draw(logits, torch.tensor([uniform], dtype=torch.float64)).item()
        assert token == possible[0 if uniform == 0 else -1]

    def test_evenly_spread_numbers_give_each_token_its_share(self):
        """The shares of n evenly spread numbers are off by 1 / n at most, which no chance is."""
        logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1))
        count = 10_000
        uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        drawn = draw(logits.expand(count, -1), uniforms)[:, 0]
        shares = torch.bincount(drawn, minlength=12).double() / count
        torch.testing.assert_close(shares, logits[0].double().softmax(-1), atol=1.1e-4, rtol=0)

    def test_random_numbers_fit_the_distribution(self):
        logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
        uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
        counts = torch.bincount(draw(logits.expand(20_000, -1), uniforms)[:, 0], minlength=8)
        expected = logits[0].double().softmax(-1) * 20_000
        assert stats.chisquare(counts.double().numpy(), expected.numpy()).pvalue > 1e-3


def scored_alone(model, rollout, rows) -> None:
    """Check the scores of a rollout against a forward of each unpadded row, token by token."""
    with torch.no_grad():
        logits, _ = response_logits(model, rollout)
        batched = token_logprobs(logits, rollout.tokens, WARM)
        for row, prompt in enumerate(rows):
            ids = list(prompt)
            for t in range(int(rollout.response[row].sum())):
                token = rollout.tokens[row, t]
                alone = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1] / WARM, -1)
                assert batched[row, t].item() == pytest.approx(alone[token].item(), abs=CLOSE)
                # What decoding with the cache made of it.
                decoded = rollout.logp[row, t].item()
                assert decoded == pytest.approx(alone[token].item(), abs=CLOSE)
                ids.append(int(token))


def test_decoding_scores_as_a_fresh_pass_over_each_row(model, rollout):
    """Left padding and the static cache change no probability."""
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
    scored_alone(model, write(model, rows), rows)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_a_response_is_the_same_in_any_batch(seed, count):
    """Whatever rows stand beside it and however much padding they bring."""
    rows = prompts(6, 1, 11, seed=seed)
    uniforms = numbers(6, 5, seed)
    together = write(MODEL, rows, uniforms=uniforms)
    chosen = np.random.default_rng(seed).permutation(6)[:count]
    apart = write(MODEL, [rows[row] for row in chosen], uniforms=uniforms[chosen])
    for index, row in enumerate(chosen):
        length = int(apart.response[index].sum())
        assert together.response[row].sum() == length
        assert torch.equal(together.tokens[row, :length], apart.tokens[index, :length])
        torch.testing.assert_close(
            together.logp[row, :length], apart.logp[index, :length], atol=CLOSE, rtol=0
        )


def test_the_engine_draws_from_the_whole_scored_distribution(model):
    """4,000 draws of one token: the frequencies fit the scored probabilities, tail included.

    At this temperature a nucleus of 0.95 or the 50 best tokens would leave none for the rest.
    """
    rows = [prompts(1, 6, 6)[0]] * 4000
    engine = TransformersEngine(TOKENIZER)
    one = engine(model, rows, [6] * 4000, numbers(4000, 1), WARM)
    with torch.no_grad():
        logits, _ = response_logits(model, one.at(one.place(torch.tensor([0]))))
    probabilities = (logits[0, 0].double() / WARM).softmax(-1)
    counts = torch.bincount(one.tokens[:, 0], minlength=len(probabilities)).double()
    expected = probabilities * len(rows)
    common = expected >= 5
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    assert common.sum() > 20
    assert stats.chisquare(seen.numpy(), wanted.numpy()).pvalue > 1e-3
    ordered, order = probabilities.sort(descending=True)
    tail = order[(ordered.cumsum(0) > 0.95).nonzero()[:, 0]]
    assert counts[tail].sum() > 0.5 * expected[tail].sum() > 20
    assert counts[order[50:]].sum() > 0.5 * expected[order[50:]].sum() > 20


def test_the_sampled_temperature_is_the_scored_one(model):
    """Log-probabilities under the engine differ from those at another temperature."""
    rows = prompts(5, 2, 9)
    engine = TransformersEngine(TOKENIZER)
    for temperature in (0.5, 2.0):
        got = engine(model, rows, list(map(len, rows)), numbers(5), temperature)
        with torch.no_grad():
            logits, _ = response_logits(model, got)
        real = got.response.bool()
        right = token_logprobs(logits, got.tokens, temperature)[real]
        torch.testing.assert_close(got.logp[real], right, atol=CLOSE, rtol=CLOSE)
        assert (got.logp[real] - token_logprobs(logits, got.tokens, 1.0)[real]).abs().max() > 0.1


class TestMergedDecoding:
    """The adapter inside the base weights while tokens are drawn."""

    def both(self, model):
        rows = prompts(6, 2, 9)
        return [
            TransformersEngine(TOKENIZER, merge)(model, rows, [1] * 6, numbers(6), WARM)
            for merge in (True, False)
        ]

    def test_it_writes_what_the_unmerged_model_writes(self, model):
        merged, plain = self.both(model)
        assert torch.equal(merged.ids, plain.ids)
        torch.testing.assert_close(merged.logp, plain.logp, atol=CLOSE, rtol=0)
        with torch.no_grad(), model.disable_adapter():
            logits, _ = response_logits(model, merged)
        base = token_logprobs(logits, merged.tokens, WARM) * merged.response
        assert (merged.logp - base).abs().max() > 0.1

    def test_the_base_weights_come_back_bit_for_bit(self):
        model = with_adapter(tiny_llama())
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        wanted = {name: weight.requires_grad for name, weight in model.named_parameters()}
        self.both(model)
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name])
            assert weight.requires_grad == wanted[name]


def test_a_nan_of_the_nucleus_does_not_reach_the_padding(model):
    """The padding token lies outside of most nuclei, where its log-probability is -inf."""
    rows = prompts(8, 2, 9, seed=2)
    first = write(model, rows, temperature=COLD, tokens=6)
    got = write(
        model, rows, ends_with(int(first.tokens[0, 0])), tokens=6, top_p=0.5, temperature=COLD
    )
    assert (got.response == 0).any()
    assert not got.logp[got.response == 0].any()
    assert got.logp.isfinite().all()


class RowCounter(Decoder):
    """Notes how many rows each pass has."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __call__(self, lm, **inputs):
        self.rows.append(len(inputs["input_ids"]))
        return super().__call__(lm, **inputs)


def test_ended_rows_are_dropped_and_the_others_do_not_notice(model):
    # Cold enough that one token is frequent.
    cool = {"temperature": 0.3}
    rows, uniforms = prompts(32, 2, 9, seed=3), numbers(32, 40, seed=4)
    first = write(model, rows, uniforms=uniforms, **cool)
    tokenizer = ends_with(int(first.tokens.flatten().mode().values))
    decoder = RowCounter()
    got = write(model, rows, tokenizer, uniforms=uniforms, decoder=decoder, **cool)
    assert decoder.rows[0] == 32
    assert 8 <= decoder.rows[-1] <= 16
    assert 16 <= got.ended.sum() < 32
    for row, prompt in enumerate(rows):
        alone = write(model, [prompt], tokenizer, uniforms=uniforms[row : row + 1], **cool)
        real, t = got.response[row].bool(), alone.response.shape[1]
        assert real.tolist() == [True] * t + [False] * (len(real) - t)
        assert torch.equal(got.tokens[row, :t], alone.tokens[0])
        assert (got.tokens[row, t:] == tokenizer.pad_token_id).all()
        assert got.ended[row] == alone.ended[0]
        torch.testing.assert_close(got.logp[row, :t], alone.logp[0], atol=CLOSE, rtol=CLOSE)


def test_the_numbers_decide_and_nothing_global_changes(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = write(model, prompts(3, 2, 5), seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(first.ids, write(model, prompts(3, 2, 5), seed=1).ids)
    assert not torch.equal(first.tokens, write(model, prompts(3, 2, 5), seed=2).tokens)


def ends_with(token: int) -> SimpleNamespace:
    return SimpleNamespace(pad_token_id=0, eos_token_id=token)


def first_of_its_kind(tokens: list[int]) -> int:
    """The latest position whose token did not occur before it."""
    return max(i for i, token in enumerate(tokens) if token not in tokens[:i])


class Counting(Decoder):
    """Counts forward passes."""

    passes = 0

    def __call__(self, lm, **inputs):
        self.passes += 1
        return super().__call__(lm, **inputs)


def test_sampling_stops_when_all_have_ended(model):
    row = prompts(1, 4, 4, seed=9)
    counting = Counting()
    free = write(model, row, temperature=COLD, decoder=counting)
    assert free.ended.tolist() == [False]
    assert counting.passes == 7
    tokens = free.tokens[0].tolist()
    last = first_of_its_kind(tokens[:-1])
    counting = Counting()
    ended = write(model, row * 3, ends_with(tokens[last]), temperature=COLD, decoder=counting)
    assert ended.tokens.tolist() == [tokens[: last + 1]] * 3
    assert counting.passes == last + 1 < 7
    assert ended.ended.all()
    assert ended.response.all()


def test_rows_that_ended_early_are_padded_and_masked(model):
    rows = prompts(8, 2, 9, seed=2)
    free = write(model, rows, temperature=COLD, tokens=6)
    # A token some rows write in time and others do not.
    token = next(
        int(t) for t in free.tokens.unique() if 0 < (free.tokens == t).any(dim=1).sum() < len(rows)
    )
    got = write(model, rows, ends_with(token), temperature=COLD, tokens=6)
    assert got.ended.any()
    assert not got.ended.all()
    for row in range(len(rows)):
        written = free.tokens[row].tolist()
        length = written.index(token) + 1 if token in written else len(written)
        assert bool(got.ended[row]) == (token in written)
        assert got.tokens[row].tolist() == written[:length] + [0] * (6 - length)
        assert got.response[row].tolist() == [1.0] * length + [0.0] * (6 - length)
        assert got.mask[row].tolist()[-6:] == [1] * length + [0] * (6 - length)
        assert not got.logp[row, length:].any()


def test_what_stands_in_padding_is_never_read(model):
    rows = prompts(8, 2, 9, seed=2)
    rollout = write(model, rows, ends_with(int(write(model, rows).tokens[0, 1])))
    noise = torch.randint(3, 300, rollout.ids.shape, generator=torch.Generator().manual_seed(0))
    garbled = rollout._replace(ids=torch.where(rollout.mask.bool(), rollout.ids, noise))
    assert (garbled.ids != rollout.ids).any()
    real = rollout.response.bool()
    with torch.no_grad():
        expected, hidden = (x[real] for x in response_logits(model, rollout))
        got, states = (x[real] for x in response_logits(model, garbled))
    torch.testing.assert_close(got, expected, atol=CLOSE, rtol=0)
    torch.testing.assert_close(states, hidden, atol=CLOSE, rtol=0)


class Shapes(Decoder):
    """A decoder that would compile; notes the shapes of its passes over one token instead."""

    def __init__(self):
        super().__init__(compile=True)
        self.seen: set[tuple] = set()
        self.caches: set[int] = set()

    def __call__(self, lm, **inputs):
        if inputs["input_ids"].shape[1] == 1:
            names = ("input_ids", "attention_mask", "position_ids")
            cache = inputs["past_key_values"]
            width = cache.layers[0].keys.shape[2]
            self.seen.add((*(tuple(inputs[name].shape) for name in names), width))
            self.caches.add(cache.layers[0].keys.data_ptr())
        return lm(use_cache=True, logits_to_keep=1, **inputs).logits[:, -1]


def test_compiled_code_meets_one_shape(model):
    """Whatever the lengths of the prompts: each other shape would be compiled anew."""
    decoder = Shapes()
    for length in range(3, 12):
        rows = prompts(3, length, length, seed=length)
        got = write(model, rows, decoder=decoder)
        assert torch.equal(got.ids, write(model, rows).ids)
    assert decoder.seen == {((3, 1), (3, 64), (3, 1), 64)}
    assert len(decoder.caches) == 1


@pytest.mark.slow
def test_a_compiled_decoder_writes_the_same():
    """Twice, with prompts of other lengths: compiled code uses its cache again."""
    model = with_adapter(tiny_llama(layers=1))
    compiled = Decoder(compile=True)
    for seed in (0, 1):
        rows = prompts(3, 2, 9, seed=seed)
        got = write(model, rows, tokens=4, seed=seed, decoder=compiled)
        expected = write(model, rows, tokens=4, seed=seed)
        assert torch.equal(got.ids, expected.ids)
        assert torch.equal(got.mask, expected.mask)
        torch.testing.assert_close(got.logp, expected.logp, atol=CLOSE, rtol=0)


def ragged(seed: int) -> Rollout:
    """A rollout of 7 rows of mixed lengths, with tokens that tell where they stand."""
    rng = np.random.default_rng(seed)
    n, p, t = 7, 9, 6
    starts, ends = rng.integers(0, p, size=n), rng.integers(1, t + 1, size=n)
    columns = np.arange(p + t)
    mask = torch.from_numpy((columns >= starts[:, None]) & (columns < p + ends[:, None])).long()
    ids = torch.arange(n * (p + t)).view(n, -1)
    response = mask[:, p:].float()
    logp = -torch.arange(1.0, n * t + 1).view(n, t) * response
    return Rollout(ids, mask, response, torch.arange(n) % 2 == 0, torch.arange(n), logp)


class TestGroups:
    """Prompts of similar length are decoded together."""

    @pytest.mark.parametrize("merge", [True, False])
    def test_groups_of_any_size_write_the_same_texts(self, model, merge):
        rows = [prompts(1, length, length, seed=length)[0] for length in (9, 3, 6, 2, 11, 5, 3)]
        free = write(model, rows, uniforms=numbers(7))
        tokenizer = ends_with(int(free.tokens[2, 1]))
        active = [1, 2, 3, 1, 2, 3, 1]
        whole, *parts = (
            TransformersEngine(tokenizer, merge, batch_size=size)(
                model, rows, active, numbers(7), WARM
            )
            for size in (128, 1, 3)
        )
        assert whole.ended.any()
        assert not whole.ended.all()
        assert [row[: len(p)] for row, p in zip(asked(whole), rows, strict=True)] == rows
        for got in parts:
            for name in ("ids", "mask", "response", "ended", "request"):
                assert torch.equal(getattr(got, name), getattr(whole, name)), name
            torch.testing.assert_close(got.logp, whole.logp, atol=CLOSE, rtol=0)

    def test_a_group_holds_the_prompts_of_similar_length(self, model):
        widths = []

        class Widths(Decoder):
            def __call__(self, lm, **inputs):
                if inputs["input_ids"].shape[1] > 1:
                    widths.append(tuple(inputs["input_ids"].shape))
                return super().__call__(lm, **inputs)

        rows = [prompts(1, length, length)[0] for length in (9, 3, 6, 2, 11)]
        engine = TransformersEngine(TOKENIZER, batch_size=2)
        engine.decoder = Widths()
        engine(model, rows, [1] * 5, numbers(5), WARM)
        assert widths == [(2, 3), (2, 9), (1, 11)]

    @given(seed=st.integers(0, 10**6), size=st.integers(1, 8))
    @settings(max_examples=60, deadline=None)
    def test_parts_join_to_the_whole(self, seed, size):
        """Cut to their own width, and in another order."""
        whole = ragged(seed)
        whole = whole._replace(ids=torch.where(whole.mask.bool(), whole.ids, -7))
        whole = whole.at(whole.place(torch.arange(7)))
        order = torch.from_numpy(np.random.default_rng(seed).permutation(7))
        parts = [whole.at(whole.place(rows)) for rows in order.split(size)]
        for got, expected in zip(joined(parts, order, -7), whole, strict=True):
            assert torch.equal(got, expected)


def asked(rollout: Rollout) -> list[tuple[int, ...]]:
    """Real tokens of each row, prompt and response."""
    return [
        tuple(row[real.bool()].tolist())
        for row, real in zip(rollout.ids, rollout.mask, strict=True)
    ]


class TestMicroBatches:
    @given(seed=st.integers(0, 10**6), size=st.integers(1, 9), count=st.integers(1, 7))
    @settings(max_examples=60, deadline=None)
    def test_they_hold_every_row_once_and_every_real_token(self, seed, size, count):
        rollout = ragged(seed)
        rows = torch.from_numpy(np.random.default_rng(seed).permutation(7)[:count])
        places = rollout.micro_batches(size, rows)
        assert sorted(torch.cat([place.rows for place in places]).tolist()) == sorted(rows.tolist())
        assert all(0 < len(place.rows) <= size for place in places)
        for place in places:
            part = rollout.at(place)
            assert torch.equal(part.mask.sum(1), rollout.mask[place.rows].sum(1))
            assert torch.equal(part.response.sum(1), rollout.response[place.rows].sum(1))
            assert torch.equal(part.ended, rollout.ended[place.rows])
            assert torch.equal(part.request, rollout.request[place.rows])
            # No column is padding in all rows, and prompt and response still meet.
            assert part.mask[:, 0].any()
            assert part.mask[:, -1].any()
            assert torch.equal(part.mask[:, -part.response.shape[1] :].float(), part.response)
            assert torch.equal(
                part.tokens * part.response,
                rollout.tokens[place.rows, place.response] * part.response,
            )

    @given(seed=st.integers(0, 10**6), size=st.integers(1, 9))
    @settings(max_examples=60, deadline=None)
    def test_parts_assemble_to_the_whole(self, seed, size):
        rollout = ragged(seed)
        places = rollout.micro_batches(size)
        parts = [rollout.at(place) for place in places]
        at = [(place.rows, place.response) for place in places]
        assert torch.equal(assembled([part.logp for part in parts], at, 6), rollout.logp)
        columns = [(place.rows, place.columns) for place in places]
        ids = assembled([part.ids * part.mask for part in parts], columns, 15)
        assert torch.equal(ids, rollout.ids * rollout.mask)
        # Tensors [k, t, d] as well.
        deep = assembled([part.logp[..., None].expand(-1, -1, 3) for part in parts], at, 6)
        assert torch.equal(deep, rollout.logp[..., None].expand(-1, -1, 3))

    @given(seed=st.integers(0, 10**6), size=st.integers(1, 9))
    @settings(max_examples=30, deadline=None)
    def test_rows_of_similar_length_lie_together(self, seed, size):
        rollout = ragged(seed)
        lengths = rollout.mask.sum(dim=1)
        order = torch.cat([place.rows for place in rollout.micro_batches(size)])
        assert torch.equal(lengths[order], lengths.sort().values)

    def test_gradients_pass_through_assembling(self):
        rollout = ragged(3)
        places = rollout.micro_batches(2)
        leaf = rollout.logp.clone().requires_grad_()
        parts = [leaf[place.rows, place.response] for place in places]
        assembled(parts, [(p.rows, p.response) for p in places], 6).sum().backward()
        covered = torch.zeros(7, 6)
        for place in places:
            covered[place.rows, place.response] = 1
        assert torch.equal(leaf.grad, covered)

    def test_no_rows_are_no_micro_batch(self):
        assert ragged(0).micro_batches(3, torch.tensor([], dtype=torch.long)) == []

    def test_a_micro_batch_is_scored_as_the_whole_batch(self, model):
        rows = prompts(8, 2, 9, seed=2)
        rollout = write(model, rows, ends_with(int(write(model, rows).tokens[0, 1])))
        with torch.no_grad():
            whole, _ = response_logits(model, rollout)
            for place in rollout.micro_batches(3):
                part = rollout.at(place)
                logits, _ = response_logits(model, part)
                real = part.response.bool()
                expected = whole[place.rows, place.response][real]
                torch.testing.assert_close(logits[real], expected, atol=CLOSE, rtol=CLOSE)


class TestNucleus:
    """For texts that people read; training never cuts the distribution."""

    def test_by_hand(self):
        logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()

        def kept(top_p: float) -> list[bool]:
            return nucleus(logits, top_p)[0].isfinite().tolist()

        assert kept(0.4) == [False, True, False, False]
        assert kept(0.6) == [False, True, True, False]
        # Of equal tokens the first one completes the set.
        assert kept(0.85) == [True, True, True, False]
        assert kept(0.95) == [True] * 4
        assert nucleus(logits, 1.0) is logits

    @given(seed=st.integers(0, 10**6), top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999]))
    @settings(max_examples=50, deadline=None)
    def test_it_is_the_head_of_a_stable_sort(self, seed, top_p):
        """Also where many tokens are equally likely."""
        logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(seed)).mul(2).round()
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        inside = probabilities.cumsum(-1) - probabilities < top_p
        expected = torch.zeros_like(inside).scatter(-1, order, inside)
        assert torch.equal(nucleus(logits, top_p).isfinite(), expected)

    def test_it_leaves_relative_odds_alone_and_binds_sampling(self, model):
        logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
        got = nucleus(logits, 0.5)
        inside = got.isfinite()
        assert torch.equal(got[inside], logits[inside])
        mass = (logits.softmax(-1) * inside).sum(-1)
        smallest = torch.where(inside, logits.softmax(-1), 1).min(-1).values
        assert (mass >= 0.5).all()
        assert (mass - smallest < 0.5).all()
        # A nucleus of one token is greedy decoding, whatever the numbers.
        rows = prompts(3, 3, 6)
        greedy = write(model, rows, temperature=COLD)
        assert torch.equal(write(model, rows, top_p=1e-6, seed=8).ids, greedy.ids)


def test_decode_drops_padding_and_special_tokens(world):
    from shielded_recrl.explainer.base import load_tokenizer

    tokenizer = load_tokenizer(world.base)
    text = tokenizer.encode(" Give Harbor Road 3 a try.", add_special_tokens=False)
    row = [*text, tokenizer.eos_token_id]
    response = torch.tensor([[1.0] * len(row) + [0.0] * 2, [1.0] + [0.0] * (len(row) + 1)])
    tokens = torch.tensor([row + text[:2], [tokenizer.eos_token_id] + [7] * (len(row) + 1)])
    ended, request = torch.tensor([True, True]), torch.tensor([1, 1])
    rollout = Rollout(tokens, response.long(), response, ended, request, torch.zeros_like(response))
    assert decode(rollout, tokenizer) == ["Give Harbor Road 3 a try.", ""]


def test_pad_left():
    ids, mask = pad_left([(5,), (6, 7, 8)], pad=0)
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
