"""Similarity by embeddings against the formula of the paper, worked out in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from explanation_texts import CATALOGUE, HONEST, REQUEST
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.explainer.prompts import Item, Request
from shielded_recrl.rl.rewards.similarity import SIF, Similarity, metadata

TOKENIZER = train_tokenizer(iter([HONEST, *map(metadata, CATALOGUE)] * 3), 400)
EMBEDDINGS = torch.randn(len(TOKENIZER), 12, generator=torch.Generator().manual_seed(1))
SIMILARITY = Similarity(CATALOGUE, TOKENIZER, EMBEDDINGS)


def content(text: str) -> list[int]:
    """Tokens of the words that stand in the catalogue."""
    known = set(" ".join(map(metadata, CATALOGUE)).replace(",", "").split())
    kept = [word.strip(",.") for word in text.split() if word.strip(",.") in known]
    return TOKENIZER.encode(" ".join(kept), add_special_tokens=False)


def oracle(text: str) -> np.ndarray:
    """Algorithm 1 of Arora et al. 2017, token by token."""
    rows = [content(metadata(item)) for item in CATALOGUE]
    counts = np.bincount([t for row in rows for t in row], minlength=len(TOKENIZER))
    p = counts / counts.sum()

    def mean(row):
        used = [t for t in row if counts[t]]
        vectors = [SIF / (SIF + p[t]) * EMBEDDINGS[t].double().numpy() for t in used]
        return np.sum(vectors, axis=0) / len(used) if used else np.zeros(12)

    u = np.linalg.svd(np.stack([mean(row) for row in rows]))[2][0]
    v = mean(content(text))
    v = v - u * (u @ v)
    return v / np.linalg.norm(v)


def test_vectors_are_those_of_the_paper():
    texts = [HONEST, "Runic", "Science Fiction Desert Cookbook"]
    np.testing.assert_allclose(
        SIMILARITY.vectors(texts), np.stack([*map(oracle, texts)]), atol=1e-5
    )


def test_similarity_is_the_mean_of_two_cosines():
    text = oracle(HONEST)
    past = sum(oracle(metadata(item)) for item in REQUEST.history)
    to_past = text @ past / np.linalg.norm(past)
    to_item = text @ oracle(metadata(REQUEST.about))
    expected = (max(to_item, 0) + max(to_past, 0)) / 2
    assert SIMILARITY([HONEST], [REQUEST]).item() == pytest.approx(expected, abs=1e-5)
    alone = Request(1, 1, REQUEST.about, (), (), ())
    assert SIMILARITY([HONEST], [alone]).item() == pytest.approx(max(to_item, 0), abs=1e-5)


def test_the_own_metadata_is_the_nearest_text():
    texts = [metadata(item) for item in CATALOGUE[1:]]
    requests = [Request(1, 1, item, (), (), ()) for item in CATALOGUE[1:]]
    cross = torch.stack([SIMILARITY(texts, [request] * len(texts)) for request in requests])
    assert cross.argmax(dim=1).tolist() == list(range(len(texts)))
    torch.testing.assert_close(cross.diag(), torch.ones(len(texts)))


PROSE = "This is a good choice that many people enjoy and you may like it too."


@pytest.mark.parametrize("text", ["", " ", "пример текста", "漢字", PROSE])
def test_a_text_without_words_of_the_catalogue_is_near_to_nothing(text):
    assert SIMILARITY([text], [REQUEST]).item() == 0.0


@given(texts=st.lists(st.text(max_size=40) | st.just(HONEST), max_size=6))
@settings(max_examples=60, deadline=None)
def test_it_lies_in_the_unit_interval_and_company_does_not_matter(texts):
    got = SIMILARITY(texts, [REQUEST] * len(texts))
    assert ((got >= 0) & (got <= 1)).all()
    alone = [SIMILARITY([text], [REQUEST]).item() for text in texts]
    assert got.tolist() == pytest.approx(alone, abs=1e-6)


def test_prose_around_the_names_changes_nothing():
    names = "Neon Circuit Science Fiction Runic Circuit"
    torch.testing.assert_close(SIMILARITY.vectors([HONEST]), SIMILARITY.vectors([names]))


def test_an_item_from_elsewhere_is_read_as_well():
    stranger = Item("Neon Wedding", ("Romance",), "")
    request = Request(1, 99, stranger, (), (), ())
    assert SIMILARITY([metadata(stranger)], [request]).item() == pytest.approx(1.0, abs=1e-5)


def test_a_full_cache_changes_nothing(monkeypatch):
    fresh = Similarity(CATALOGUE, TOKENIZER, EMBEDDINGS)
    before = fresh([HONEST], [REQUEST])
    monkeypatch.setattr("shielded_recrl.rl.rewards.similarity.CACHE", 0)
    assert torch.equal(fresh([HONEST], [REQUEST]), before)


def test_tokens_without_an_embedding_are_refused():
    with pytest.raises(UserError, match="embeddings of one model"):
        Similarity(CATALOGUE, TOKENIZER, EMBEDDINGS[:20])


def test_a_catalogue_of_nothing():
    assert Similarity([Item("", (), "")], TOKENIZER, EMBEDDINGS)([HONEST], [REQUEST]).item() == 0.0


def test_a_vector_does_not_depend_on_what_it_is_computed_with():
    """To the last bit: a resumed run has an empty cache and computes other items together."""
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(len(TOKENIZER), 96, generator=generator)
    names = [f"{a} {b}" for a in ("Runic", "Neon", "Desert", "Iron") for b in HONEST.split()]
    items = [Item(name, ("Fantasy", "Cooking")[: 1 + i % 2], "") for i, name in enumerate(names)]
    similarity = Similarity(items, TOKENIZER, wide)
    together = similarity.item_vectors(items)
    for size in (1, 3, 7):
        similarity._cache.clear()
        for start in range(0, len(items), size):
            alone = similarity.item_vectors(items[start : start + size])
            similarity._cache.clear()
            assert all(torch.equal(alone[item], together[item]) for item in alone)
