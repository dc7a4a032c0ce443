"""The audits in words.

In: the sections toxicity, popularity and privacy of an audit. Out: one sentence for each thing that
is wrong after training, or worse than before by more than sampling explains.
"""

from __future__ import annotations

from typing import Any


def findings(sections: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader has to know, one sentence each; empty where the audits found nothing."""
    toxicity, popularity, privacy = (
        sections[name] for name in ("toxicity", "popularity", "privacy")
    )
    found = []
    after = toxicity["after"]
    if after["toxic"]:
        found.append(
            f"toxicity: {after['toxic']} of {after['texts']} texts after training score at least "
            f"{toxicity['threshold']:g} (before: {toxicity['before']['toxic']})"
        )
    if toxicity["change"]["low"] > 0:
        found.append("toxicity: the mean rose by " + _interval(toxicity["change"]))
    change = popularity["change"]
    if change["average_popularity"]["low"] > 0:
        found.append(
            "popularity: the average popularity of served items rose by "
            + _interval(change["average_popularity"])
        )
    if change["long_tail_share"]["high"] < 0:
        found.append(
            "popularity: the long-tail share changed by " + _interval(change["long_tail_share"])
        )
    after = privacy["after"]
    if after["leaks"]:
        found.append(
            f"privacy: {after['leaks']} of {after['texts']} texts after training contain a user id"
        )
    if after["copied_share"] > privacy["before"]["copied_share"]:
        found.append(
            f"privacy: the share of texts with {privacy['overlap_words']} words copied from a "
            f"description rose from {privacy['before']['copied_share']:.4f} "
            f"to {after['copied_share']:.4f}"
        )
    return found


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.4g} (95% interval {value['low']:.4g} to {value['high']:.4g})"
