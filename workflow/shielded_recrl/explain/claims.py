"""The claims of an explanation, where they stand, and which of them hold.

In: a text, and the request it answers. Out: `Claim`s. What counts as a claim, and as supported, is
the rule of the evaluation (`rl.evaluation.simulator`), not that of the reward: the marks a reader
sees are those that the reported claim precision counts.
"""

from __future__ import annotations

from shielded_recrl.explain.answers import Claim
from shielded_recrl.explainer.prompts import Request, short_title
from shielded_recrl.rl.evaluation.simulator import ClaimIndex, supported_claims
from shielded_recrl.rl.text import WORD, words, written_as_names


def find_claims(text: str, request: Request, index: ClaimIndex) -> tuple[Claim, ...]:
    """Every mention of a title or category, in the order of the text.

    Args:
        text: an explanation.
        request: what it answers: the item and the history named in the prompt.
        index: of the catalogue.
    """
    places = [match.span() for match in WORD.finditer(text)]
    tokens = words(text)
    titles = [tuple(words(short_title(item))) for item in (request.about, *request.history)]
    known = {title[0] for title in titles if len(title) == 1}
    spans = index.spans(tokens, written_as_names(text, known))
    phrases = [tuple(tokens[start:end]) for start, end in spans]
    supported = supported_claims(set(phrases), request)
    return tuple(
        Claim(text[(begin := places[start][0]) : (stop := places[end - 1][1])], begin, stop, held)
        for (start, end), held in zip(
            spans, (phrase in supported for phrase in phrases), strict=True
        )
    )
