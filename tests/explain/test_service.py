"""What the runs of a tiny study serve: the rankings of its evaluation, and texts of its samplers."""

from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

from shielded_recrl.errors import UserError
from shielded_recrl.explain.claims import find_claims
from shielded_recrl.explain.service import Library
from shielded_recrl.explainer.prompts import Request
from shielded_recrl.files import read_json

VARIANTS = ("shielded", "no_proj", "separate", "activated")
K = 10


def answers(library: Library, variant: str, user: int, k: int = K):
    return library.recommend("books", variant, 5, user, k)


def items(answer):
    return [one.thing.item for one in answer.recommendations]


@pytest.fixture
def evaluated(study):
    """Lists that the evaluation of a variant wrote: {(step, user): items}."""

    def read(variant):
        frame = pl.read_parquet(study / f"results/rl/books/{variant}/seed-5/rankings.parquet")
        return {
            key: group.sort("position")["item"].to_list()
            for key, group in frame.group_by("step", "user")
        }

    return read


@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_are_those_of_the_evaluation(library, evaluated, variant):
    lists = evaluated(variant)
    users = sorted({user for _, user in lists})
    assert len(users) == 12
    for user in users[::2]:
        assert items(answers(library, variant, user)) == lists[2, user]


@pytest.mark.parametrize("variant", ["separate", "activated"])
def test_exact_kinds_serve_the_lists_of_the_untrained_adapter(library, evaluated, variant):
    lists = evaluated(variant)
    for step, user in lists:
        if step == 0:
            assert items(answers(library, variant, user)) == lists[0, user]


def test_an_unshielded_run_moves_scores_that_separate_does_not(library):
    """Both runs were trained alike: they differ by what the ranking reads."""
    free, apart = (answers(library, name, 1) for name in ("no_proj", "separate"))
    scores = [
        {one.thing.item: one.score for one in answer.recommendations} for answer in (free, apart)
    ]
    shared = scores[0].keys() & scores[1].keys()
    assert max(abs(scores[0][item] - scores[1][item]) for item in shared) > 1e-3
    texts = [
        {one.thing.item: one.explanation for one in answer.recommendations}
        for answer in (free, apart)
    ]
    assert any(texts[0][item] == texts[1][item] for item in shared)


def test_a_list_is_sorted_unseen_and_the_sum_of_its_parts(library):
    answer = answers(library, "shielded", 4)
    scores = [one.score for one in answer.recommendations]
    assert scores == sorted(scores, reverse=True)
    for one in answer.recommendations:
        assert one.score == pytest.approx(one.ranker_score + one.lm_score)
        assert one.lm_score != 0
    past = {past.thing.item for past in answer.history}
    assert len(past) == 7
    assert past.isdisjoint(items(answer))
    assert [one.position for one in answer.recommendations] == list(range(1, K + 1))
    test = set(library.dataset("books").splits.test[4].tolist())
    assert [one.in_test for one in answer.recommendations] == [i in test for i in items(answer)]


def test_every_user_is_served_whatever_their_part(library):
    dataset = library.dataset("books")
    parts = {dataset.role(user): user for user in range(1, dataset.splits.n_users + 1)}
    assert set(parts) == {"protected", "heldout", "train"}
    for role, user in parts.items():
        answer = answers(library, "shielded", user, 2)
        assert (answer.person.role, len(answer.recommendations)) == (role, 2)
    roles = {role: len(dataset.people(role)) for role in (*parts, "none", None)}
    assert roles == {"protected": 5, "heldout": 7, "train": 12, "none": 0, None: 24}


def test_the_named_history_is_what_the_prompt_names(library):
    answer = answers(library, "shielded", 4)
    serving_items = library.dataset("books").history(4)
    assert [past.thing.item for past in answer.history] == serving_items
    named = [past.thing.item for past in answer.history if past.named]
    assert 1 <= len(named) <= 3
    assert named == serving_items[-len(named) :]


def test_texts_are_read_for_claims_against_their_own_request(library):
    count = 0
    dataset = library.dataset("books")
    for user in range(1, 13):
        answer = answers(library, "shielded", user)
        named = tuple(dataset.items[past.thing.item] for past in answer.history if past.named)
        for one in answer.recommendations:
            count += len(one.claims)
            item = one.thing.item
            request = Request(user, item, dataset.items[item], named, (), ())
            assert one.claims == find_claims(one.explanation, request, dataset.index)
    assert count > 0


def test_a_text_depends_on_run_user_and_item_alone(study, library, monkeypatch):
    few, many = (answers(library, "no_proj", 3, k) for k in (3, 10))
    assert few.recommendations == many.recommendations[:3]
    fresh = Library(library.runs)
    assert answers(fresh, "no_proj", 3, 3) == few


def test_at_least_one_item(library):
    with pytest.raises(UserError, match=r"-k 0: at least one"):
        answers(library, "shielded", 1, 0)


def test_a_user_who_has_all_but_a_few_gets_a_short_list(library):
    dataset = library.dataset("books")
    answer = answers(library, "shielded", 2, 100)
    assert len(answer.recommendations) == dataset.splits.n_items - 7


def test_a_library_keeps_answers_and_two_models(library):
    one = Library(library.runs)
    first = answers(one, "shielded", 1, 2)
    assert answers(one, "shielded", 1, 2) is first
    for variant in VARIANTS:
        answers(one, variant, 1, 1)
    assert [key[1] for key in one._explainers] == ["separate", "activated"]
    assert answers(one, "shielded", 1, 2) is first


def test_an_answer_at_hand_waits_for_nobody(library):
    first = answers(library, "shielded", 1, 2)
    with ThreadPoolExecutor(1) as pool, library._lock:
        assert pool.submit(answers, library, "shielded", 1, 2).result(timeout=30) is first


@pytest.mark.parametrize("name", ["7", " 7 ", "u7", "source:u7"])
def test_a_user_is_found_by_either_id(library, name):
    assert library.dataset("books").find(name) == 7


@pytest.mark.parametrize("name", ["0", "25", "u25", "source:7", "-1", "", "7.0", "٧", "1" * 5000])
def test_nobody_is_one_line(library, name):
    with pytest.raises(UserError, match="expected 1 to 24, or an id of the source such as u1") as e:
        library.dataset("books").find(name)
    assert "\n" not in str(e.value)


def test_gamma_and_sampling_are_those_of_the_study(study, library):
    answer = answers(library, "shielded", 1)
    fitted = read_json(next((study / "results/shield/books").rglob("readout.json")))
    assert answer.gamma == fitted["gamma"] == 1.0
    assert (answer.temperature, answer.top_p) == (0.7, 0.9)
    assert answer.shield == "nullspace"
