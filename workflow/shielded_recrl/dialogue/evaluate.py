"""Compare supervised, best-of-N and RL responses to test turns.

In: base LM, supervised adapter, a run of `train`, critic, prepared dialogues, emotions,
recommendations, emotion classifier. Out: `evaluation.json` and `responses.jsonl` of the run.

Four systems answer each test turn, see `systems`, and are scored by

    critic   all heads; RL was trained on it and best-of-N chooses by it
    rules    the judge that the critic learned from
    unseen   the judge that neither critic nor reward ever saw
    text     BLEU, distinct-n, slots, words and emotions, see `response_metrics`

Every number has a 95% bootstrap interval in which whole dialogues are drawn, and every comparison is
paired: the same turns, the same dialogues. Nothing here decides whether a result is good enough.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from shielded_recrl.dialogue.comparison.contestants import (
    BEST,
    GOLD,
    RL,
    RL_BEST,
    SUPERVISED,
    pair_name,
)
from shielded_recrl.dialogue.comparison.recall import new_targets, recall, statement
from shielded_recrl.dialogue.comparison.scoring import Answers, report
from shielded_recrl.dialogue.comparison.systems import Sampled, best, kl_bound, respond
from shielded_recrl.dialogue.critique.model import Critic
from shielded_recrl.dialogue.emotion.turns import annotate, labeller
from shielded_recrl.dialogue.inputs import ResponseInputs
from shielded_recrl.dialogue.judges.base import HEADS, Judge
from shielded_recrl.dialogue.judges.rules import Rules
from shielded_recrl.dialogue.judges.unseen import Unseen
from shielded_recrl.dialogue.response.prompts import (
    ResponsePrompts,
    ResponseRequest,
    fill,
    load_recommendations,
    spread,
)
from shielded_recrl.dialogue.rl.policy import distance, load_policy
from shielded_recrl.dialogue.settings import (
    AnnotateSettings,
    DialogueEvaluationSettings,
)
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device
from shielded_recrl.files import read_json, sha256, write_json, write_jsonl
from shielded_recrl.statistics import bootstrap

OVERALL = HEADS.index("overall")


def main(
    *,
    inputs: Annotated[ResponseInputs, tyro.conf.arg(name="")],
    supervised: Path,
    reward_critic: Path,
    run: Path,
    settings: Annotated[DialogueEvaluationSettings, tyro.conf.arg(name="")],
    labels: Annotated[AnnotateSettings, tyro.conf.arg(name="labels")],
    emotion_model: Path | None = None,
) -> None:
    """Compare supervised, best-of-N and RL responses on test dialogues.

    Args:
        inputs: what responses are written from.
        supervised: folder of the supervised adapter.
        reward_critic: folder of the trained critic.
        run: folder of a run of `train`; evaluation.json and responses.jsonl are written there.
        settings: how many turns are answered, and how often.
        labels: what labels responses with emotions.
        emotion_model: folder of the emotion classifier; not read where a list of words labels.
    """
    prompts, seed = inputs.prompts(), inputs.seed
    test = prompts.dialogues.split("test")
    requests = spread(prompts.requests("test"), settings.test_turns)
    if len({request.dialogue for request in requests}) < 2:
        raise UserError(
            f"{inputs.data}: intervals need turns of two test dialogues at least; give more dialogues"
        )
    wanted = new_targets(test, prompts.recommended)

    def served(films: Mapping[tuple[int, int], Sequence[int]]) -> dict[str, Any]:
        found = recall(films, wanted, settings.bootstrap, seed)
        return {**found, "targets": len(wanted), "sha256": sha256(inputs.recommendations)}

    before = served(prompts.recommended)
    model = load_policy(
        inputs.base, supervised, run / "adapter", inputs.precision, default_device()
    )
    moved = distance(model)
    if not moved["norm"] > 0:
        raise UserError(
            f"{run}: the policy's weights are those of the supervised LM, so there is nothing to "
            "compare; give more steps than dialogue.rl.value_warmup"
        )
    ids = [prompts.ids(request) for request in requests]
    sampled = {
        name: respond(
            model,
            prompts.tokenizer,
            ids,
            adapter=name == RL,
            samples=settings.best_of,
            response_tokens=inputs.response_tokens,
            temperature=settings.temperature,
            seed=seed,
        )
        for name in (SUPERVISED, RL)
    }
    scorer = Critic.load(reward_critic, default_device())
    texts = systems(sampled, requests, scorer)
    titles = prompts.dialogues.items["title"].to_list()
    judges: dict[str, Judge] = {
        "rules": Rules(titles),
        "unseen": Unseen.fit(prompts.dialogues.split("train")),
    }
    probabilities = labeller(emotion_model, labels)
    answers = {
        name: Answers(
            said,
            {
                "critic": scorer([request.context for request in requests], said).numpy(),
                **judged(judges, requests, said, name == GOLD),
            },
            [tuple(label for label, _ in row) for row in annotate(said, probabilities, labels)],
        )
        for name, said in texts.items()
    }
    after = served(load_recommendations(inputs.recommendations, prompts.dialogues))
    summary = read_json(run / "summary.json")
    write_json(
        run / "evaluation.json",
        {
            "seed": seed,
            "synthetic": read_json(inputs.data / "stats.json")["synthetic"],
            "turns": len(requests),
            "dialogues": len({request.dialogue for request in requests}),
            "temperature": settings.temperature,
            **report(requests, answers, prompts.recommended, wanted, settings.bootstrap, seed),
            "kl": divergence(sampled[RL], requests, settings, seed),
            "ended": {name: float(said.ended.mean()) for name, said in sampled.items()},
            "samples": samples(settings.best_of, summary),
            "distance": moved,
            "recommendations": statement(before, after, inputs.recommendations),
            "inputs": {
                "adapter": sha256(run / "adapter"),
                "supervised": sha256(supervised),
                "critic": sha256(reward_critic),
            },
        },
    )
    write_jsonl(run / "responses.jsonl", rows(prompts, requests, answers))
    found = read_json(run / "evaluation.json")["comparisons"][pair_name(RL, SUPERVISED)]["scores"]
    print(
        f"{run}: {len(requests)} turns; overall of RL less supervised: "
        + ", ".join(
            "{} {mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(name, **heads["overall"])
            for name, heads in found.items()
        )
    )


def systems(
    sampled: Mapping[str, Sampled], requests: Sequence[ResponseRequest], critic: Critic
) -> dict[str, list[str]]:
    """Responses of each system, and what the recommender said."""

    def overall(texts: list[str], of: list[int]) -> np.ndarray:
        return critic([requests[row].context for row in of], texts)[:, OVERALL].numpy()

    return {
        GOLD: [request.gold for request in requests],
        SUPERVISED: [row[0] for row in sampled[SUPERVISED].texts],
        BEST: best(sampled[SUPERVISED].texts, overall),
        RL: [row[0] for row in sampled[RL].texts],
        RL_BEST: best(sampled[RL].texts, overall),
    }


def judged(
    judges: Mapping[str, Judge],
    requests: Sequence[ResponseRequest],
    texts: Sequence[str],
    is_gold: bool,
) -> dict[str, np.ndarray]:
    """Scores [n, 5] of each judge; the gold response is compared with, but not with itself."""
    found = {name: np.zeros((len(texts), len(HEADS))) for name in judges}
    both = list(zip(requests, texts, strict=True))
    for row, (request, text) in enumerate(
        tqdm(both, desc="judge", unit="response", disable=not sys.stderr.isatty())
    ):
        gold = None if is_gold else request.gold
        for name, judge in judges.items():
            scores = judge(request.context, text, request.recommended, gold)
            found[name][row] = [scores[head] for head in HEADS]
    return found


def divergence(
    policy: Sampled,
    requests: Sequence[ResponseRequest],
    settings: DialogueEvaluationSettings,
    seed: int,
) -> dict[str, Any]:
    """How far the policy and the best of N are from the supervised LM, in nats."""
    columns = np.stack([policy.kl, policy.tokens, np.ones(len(policy.kl))], axis=1)
    clusters = np.array([request.dialogue for request in requests])

    def ratio(below: int) -> dict[str, float]:
        return bootstrap(
            columns, lambda s: s[..., 0] / s[..., below], settings.bootstrap, seed, clusters
        )._asdict()

    return {
        "rl": {"per_token": ratio(1), "per_response": ratio(2)},
        "best_of_n": {"per_response_at_most": kl_bound(settings.best_of)},
    }


def samples(best_of: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What each system costs, in samples; training counts for RL.

    Best-of-N pays N - 1 samples more for every turn, RL its training once: `even_after` turns they
    have cost the same.
    """
    return {
        "a_turn": {SUPERVISED: 1, RL: 1, BEST: best_of, RL_BEST: best_of},
        "training": summary["samples"],
        "even_after": summary["samples"] / (best_of - 1),
    }


def rows(
    prompts: ResponsePrompts, requests: Sequence[ResponseRequest], answers: Mapping[str, Answers]
) -> list[dict[str, Any]]:
    """Rows of responses.jsonl: the turn, and what each system answers."""
    return [
        {
            "dialogue": request.dialogue,
            "turn": request.turn,
            "context": [
                {"role": turn.role, "text": prompts.said(turn)} for turn in request.context
            ],
            "emotions": request.emotions,
            "recommended": request.recommended,
            "responses": {
                name: {
                    "text": said.texts[row],
                    "filled": fill(said.texts[row], request.recommended),
                    "emotions": said.emotions[row],
                    "overall": {
                        judge: float(scores[row, OVERALL]) for judge, scores in said.scores.items()
                    },
                }
                for name, said in answers.items()
            },
        }
        for row, request in enumerate(requests)
    ]
