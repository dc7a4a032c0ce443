"""Where claims stand in a text, and which hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.explain.answers import Claim
from shielded_recrl.explain.claims import find_claims
from shielded_recrl.explainer.prompts import Item, Request
from shielded_recrl.rl.evaluation.simulator import ClaimIndex, judge

HEAT = Item("Heat", ("Crime",), "")
ROAD = Item("Harbor Road", ("Travel", "Sci-Fi"), "")
MAY = Item("May", ("Horror",), "")
DOLL = Item("The Doll's House", ("Romance",), "")
CATALOGUE = [Item("", (), ""), HEAT, ROAD, MAY, DOLL]
REQUEST = Request(1, 1, HEAT, (ROAD,), (), ())
INDEX = ClaimIndex(CATALOGUE)


def found(text):
    return [(claim.text, claim.supported) for claim in find_claims(text, REQUEST, INDEX)]


def test_claims_stand_where_they_are_written():
    text = "Because of HARBOR  road’s sci-fi, try Heat: not The Doll's House."
    claims = find_claims(text, REQUEST, INDEX)
    assert claims == (
        Claim("sci-fi", text.index("sci-fi"), text.index("sci-fi") + 6, False),
        Claim("Heat", text.index("Heat"), text.index("Heat") + 4, True),
        Claim("The Doll's House", text.index("The"), text.index("The") + 16, False),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Nothing is named.", []),
        ("You may like it.", []),
        ("It is May.", [("May", False)]),
        ("A crime story.", [("crime", True)]),
        # A category of the history counts where its title is named as well.
        ("Some Travel.", [("Travel", False)]),
        ("Travel as in Harbor Road.", [("Travel", True), ("Harbor Road", True)]),
        ("Heat and Heat.", [("Heat", True), ("Heat", True)]),
        ("İ Heat", [("Heat", True)]),
    ],
)
def test_which_claims_hold(text, expected):
    assert found(text) == expected


NAMES = st.sampled_from(
    ["Heat", "heat", "Harbor Road", "May", "may", "The Doll's House", "Crime", "Travel", "sci-fi"]
)
FILLER = st.text(max_size=8)


@given(st.lists(st.one_of(NAMES, FILLER, st.sampled_from([" ", ". ", ", "])), max_size=12))
def test_claims_are_those_that_the_evaluation_counts(parts):
    text = "".join(parts)
    claims = find_claims(text, REQUEST, INDEX)
    assert all(text[claim.start : claim.end] == claim.text for claim in claims)
    ends = [0, *(place for claim in claims for place in (claim.start, claim.end))]
    assert (np.diff(ends) >= 0).all()
    distinct = {" ".join(claim.text.lower().split()): claim.supported for claim in claims}
    judged = judge(text, REQUEST, INDEX)
    assert len(distinct) >= judged.claims
    assert any(not held for held in distinct.values()) == (judged.supported < judged.claims)
