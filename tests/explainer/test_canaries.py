"""Canaries: which secrets are planted, how often they are shown, and that they disturb nothing."""

import random
from itertools import islice

import pytest

from shielded_recrl.errors import UserError
from shielded_recrl.explainer import pretrain
from shielded_recrl.explainer.base import load_tokenizer
from shielded_recrl.explainer.canaries import (
    REPEATS,
    Canary,
    alternatives,
    answer_ids,
    canaries,
    context_ids,
    load_canaries,
    save_canaries,
    steps_shown,
)
from shielded_recrl.files import read_json

STEPS = 700


def test_canaries_are_a_pure_function_of_the_seed():
    planted = canaries(3, 8, STEPS)
    assert planted == canaries(3, 8, STEPS)
    # More of them begin with the same.
    assert planted == canaries(3, 12, STEPS)[:8]
    assert not {c.code for c in planted} & {c.code for c in canaries(4, 8, STEPS)}
    assert canaries(3, 0, STEPS) == ()


def test_each_has_a_context_of_its_own_and_a_code_that_is_not_in_it():
    planted = canaries(0, 50, STEPS)
    assert len({c.context for c in planted}) == 50
    assert all(len(c.code) == 4 and c.code.isdigit() for c in planted)
    assert all(c.text == f"{c.context} {c.code}." for c in planted)
    assert not any(char.isdigit() for c in planted for char in c.context)


def test_rates_are_in_turn():
    assert [c.repeats for c in canaries(0, 9, STEPS)] == [*REPEATS, *REPEATS, REPEATS[0]]


@pytest.mark.parametrize(("steps", "most"), [(1, 1), (15, 1), (40, 5), (128, 16)])
def test_a_short_training_shows_a_canary_in_an_eighth_of_its_steps(steps, most):
    assert [c.repeats for c in canaries(0, 4, steps)] == [min(most, r) for r in REPEATS]


def test_a_canary_is_shown_as_often_as_it_says():
    for canary in canaries(1, 8, STEPS):
        shown = steps_shown(canary, STEPS, seed=1)
        assert len(set(shown)) == len(shown) == canary.repeats
        assert shown == sorted(shown)
        assert set(shown) <= set(range(STEPS))


def test_alternatives_are_other_codes_of_the_same_form():
    canary = canaries(0, 1, STEPS)[0]
    codes = alternatives(canary, 1000, seed=5)
    assert len(set(codes)) == 1000
    assert canary.code not in codes
    assert all(len(code) == 4 and code.isdigit() for code in codes)
    assert codes == alternatives(canary, 1000, seed=5)
    assert codes != alternatives(canary, 1000, seed=6)


def test_a_code_that_is_drawn_as_its_own_alternative_is_left_out():
    drawn = alternatives(Canary("Of nobody is", "no code", 1), 10, seed=0)
    for code in drawn:
        own = alternatives(Canary("Of nobody is", code, 1), 9, seed=0)
        assert code not in own
        assert len(own) == 9


def test_no_explanation_prompt_begins_like_a_canary(base):
    tokenizer = load_tokenizer(base)
    for canary in canaries(0, 8, STEPS):
        ids = context_ids(canary, tokenizer)
        assert tokenizer.decode(ids) == f"<s>{canary.context}"
        assert ids[1] != tokenizer.encode("Liked:", add_special_tokens=False)[0]
        written = answer_ids(canary, tokenizer)
        assert tokenizer.decode([*ids, *written]) == f"<s>{canary.text}</s>"


def test_an_example_weighs_the_code_as_an_explanation(base, tiny):
    tokenizer = load_tokenizer(base)
    (canary,) = canaries(0, 1, 4)
    ((row,),) = pretrain.canary_examples([canary], tokenizer, tiny, 0).values()
    context, code = context_ids(canary, tokenizer), answer_ids(canary, tokenizer)
    assert row.ids == context + code
    assert row.weights == (0.0, *[tiny.prefix_weight] * (len(context) - 1), *[1.0] * len(code))


def test_training_shows_each_canary_at_its_rate_and_all_other_examples_as_without(base, tiny):
    tokenizer = load_tokenizer(base)
    rows = [pretrain.Example((n,) * (n % 7 + 2), (0.0,)) for n in range(3, 4000)]

    def batches():
        return pretrain.batches(iter(rows), 4, random.Random(0))

    settings = tiny.model_copy(update={"steps": 600})
    planted = canaries(2, 8, 600)
    shown = pretrain.canary_examples(planted, tokenizer, settings, seed=2)
    got = list(islice(pretrain.plant(batches(), shown), 600))
    plain = list(islice(batches(), 600))
    assert [batch[:4] for batch in got] == plain
    more = [row.ids for batch in got for row in batch[4:]]
    for canary in planted:
        ids = context_ids(canary, tokenizer) + answer_ids(canary, tokenizer)
        assert more.count(ids) == canary.repeats
    assert len(more) == sum(c.repeats for c in planted) < 0.1 * 600 * 4
    assert list(islice(pretrain.plant(batches(), {}), 600)) == plain


def test_the_model_s_folder_says_what_was_planted(dataset, templates, prompt, tiny, base, tmp_path):
    assert load_canaries(base) == canaries(42, tiny.canaries, tiny.steps)
    assert len(read_json(base / "canaries.json")) == tiny.canaries > 0
    none = tiny.model_copy(update={"canaries": 0})
    pretrain.main(
        data=dataset, templates=templates, out=tmp_path / "model", prompt=prompt, settings=none
    )
    assert load_canaries(tmp_path / "model") is None
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (base / name).read_bytes()


def test_what_is_written_is_read(tmp_path):
    planted = canaries(7, 5, STEPS)
    save_canaries(planted, tmp_path)
    assert load_canaries(tmp_path) == planted
    assert load_canaries(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("text", ["{", "3", "[3]", '[{"context": "a"}]', '["ab"]'])
def test_a_damaged_file_is_one_line(tmp_path, text):
    (tmp_path / "canaries.json").write_text(text)
    with pytest.raises(UserError, match=r"canaries\.json: ") as caught:
        load_canaries(tmp_path)
    assert "\n" not in str(caught.value)
