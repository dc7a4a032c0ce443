"""Prompts: bounded whatever the titles, and the prefix is exactly their beginning."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.explainer.base import load_tokenizer
from shielded_recrl.explainer.prompts import Item, PromptBuilder
from shielded_recrl.explainer.settings import PromptSettings


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


def build(tokenizer, templates, items, **changes):
    return PromptBuilder(
        tokenizer, templates, [Item("", (), ""), *items], PromptSettings(**changes)
    )


@settings(deadline=None)
@given(
    titles=st.lists(st.text(max_size=300), min_size=1, max_size=8),
    categories=st.lists(st.text(max_size=40), max_size=4),
    prompt_tokens=st.integers(16, 96),
    history_items=st.integers(1, 8),
)
def test_any_prompt_begins_with_the_prefix_and_is_short_enough(
    tokenizer, templates, titles, categories, prompt_tokens, history_items
):
    items = [Item(title, tuple(categories), "") for title in titles]
    builder = build(
        tokenizer, templates, items, prompt_tokens=prompt_tokens, history_items=history_items
    )
    history = list(range(2, len(titles) + 1))
    request = builder.request(1, 1, history)
    assert request.prompt[: len(request.prefix)] == request.prefix
    assert len(request.prefix) < len(request.prompt) <= prompt_tokens
    assert request.prefix == builder.prefix(history)[0]
    assert len(request.history) <= history_items
    assert tokenizer.eos_token_id not in request.prompt


@pytest.mark.parametrize("title", ["word " * 2000, "\n" * 10_000, "界" * 10_000, "</s>" * 2500])
def test_hostile_titles_leave_a_bounded_prompt(tokenizer, templates, title):
    builder = build(tokenizer, templates, [Item(title, (title,), "")] * 3, prompt_tokens=72)
    request = builder.request(1, 1, [2, 3])
    assert len(request.prompt) <= 72
    assert tokenizer.eos_token_id not in request.prompt
    assert tokenizer.pad_token_id not in request.prompt


def test_an_empty_history_still_gives_a_prompt(tokenizer, templates):
    builder = build(tokenizer, templates, [Item("Harbor Road", ("Travel",), "")])
    request = builder.request(1, 1, [])
    assert request.history == ()
    text = tokenizer.decode(request.prompt, skip_special_tokens=True)
    assert text == "Liked: \nNext: Harbor Road (Travel)\nWhy:"


def test_the_most_recent_titles_are_kept(tokenizer, templates):
    items = [Item(f"Harbor Road {n}", (), "") for n in range(1, 9)]
    builder = build(tokenizer, templates, items, prompt_tokens=96, history_items=3)
    request = builder.request(1, 1, [2, 3, 4, 5, 6])
    assert [item.title[-1] for item in request.history] == ["4", "5", "6"]
