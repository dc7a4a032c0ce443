"""Who scores the responses that are compared, beside the critic.

In: what each system said to the same turns, judges, the critic's report. Out: scores [n, 5] of each
system by each judge, NaN where a language model gave no grades, and what is to be known of the judges.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shielded_recrl.dialogue.comparison.contestants import GOLD
from shielded_recrl.dialogue.critique.judged import columns, judges_of
from shielded_recrl.dialogue.judges.base import HEADS, Case, Judge
from shielded_recrl.dialogue.response.prompts import ResponseRequest
from shielded_recrl.dialogue.settings import LLMJudgeSettings

# System -> judge -> [n, 5] in the order of `HEADS`.
PanelScores = dict[str, dict[str, np.ndarray]]
SECTION = "dialogue.evaluation"
# Of the scratch folder.
CACHE = "answers.jsonl"


def embedded(
    judges: Mapping[str, Judge],
    requests: Sequence[ResponseRequest],
    texts: Mapping[str, Sequence[str]],
) -> PanelScores:
    """Scores by judges in this process. None is told what the person answered."""
    found: PanelScores = {
        system: {name: np.zeros((len(said), len(HEADS))) for name in judges}
        for system, said in texts.items()
    }
    for system, said in texts.items():
        both = list(zip(requests, said, strict=True))
        shown = tqdm(both, desc=system, unit="response", disable=not sys.stderr.isatty())
        for row, (request, text) in enumerate(shown):
            case = _case(request, text)
            for name, judge in judges.items():
                scores = judge(case)
                found[system][name][row] = [scores[head] for head in HEADS]
    return found


def check(settings: LLMJudgeSettings) -> None:
    """Find out what is wrong with the models' names and address before anything is sampled.

    Raises:
        UserError: see `llm.checked`.
    """
    if settings.models:
        from shielded_recrl.dialogue.judges.llm import checked

        checked(settings, SECTION)


def asked(
    settings: LLMJudgeSettings,
    scratch: Path,
    requests: Sequence[ResponseRequest],
    texts: Mapping[str, Sequence[str]],
) -> PanelScores:
    """Scores by language models; none where no model is named.

    Args:
        settings: the models, their address and patience.
        scratch: folder in which answers are kept as they come.
        requests: the turns.
        texts: of each system, one a turn.

    Raises:
        UserError: see `llm.ask_all`.
    """
    if not settings.models:
        return {system: {} for system in texts}
    from shielded_recrl.dialogue.judges.llm import ask_all

    cases = [
        _case(request, text)
        for said in texts.values()
        for request, text in zip(requests, said, strict=True)
    ]
    table = ask_all(cases, settings, scratch / CACHE, SECTION)
    grids = {
        judge: table.select(columns(judge)).to_numpy().reshape(len(texts), -1, len(HEADS))
        for judge in judges_of(table.columns)
    }
    return {
        system: {judge: grid[place].astype(float) for judge, grid in grids.items()}
        for place, system in enumerate(texts)
    }


def about(scores: PanelScores, learned_from: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each judge whether it taught the critic, and how many responses it gave no answer on."""
    return {
        judge: {
            "taught": judge in learned_from,
            "unanswered": {
                system: int(np.isnan(found[judge]).any(axis=1).sum())
                for system, found in scores.items()
            },
        }
        for judge in scores[GOLD]
    }


def _case(request: ResponseRequest, text: str) -> Case:
    return Case(request.context, text, request.recommended)
