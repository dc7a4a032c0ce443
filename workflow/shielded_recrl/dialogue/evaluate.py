"""Compare supervised, best-of-N and RL responses to test turns.

In: base LM, supervised adapter, a run of `train`, critic and its report, prepared dialogues,
emotions, recommendations, emotion classifier. Out: `evaluation.json` and `responses.jsonl` of the run.

Four systems answer each test turn, see `systems`, and are scored by

    critic   all heads; RL was trained on it and best-of-N chooses by it
    rules    the judge that the critic learned from
    unseen   the judge that neither critic nor reward ever saw
    <model>  language models, where some are named; whether one taught the critic, too, is written down
    text     BLEU, distinct-n, slots, words and emotions, see `response.metrics`

Every number has a 95% bootstrap interval in which whole dialogues are drawn, and every comparison is
paired: the same turns, the same dialogues. Nothing here decides whether a result is good enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from torch import nn

from shielded_recrl.dialogue.comparison import panel
from shielded_recrl.dialogue.comparison.contestants import (
    BEST,
    GOLD,
    RL,
    RL_BEST,
    SUPERVISED,
    pair_name,
)
from shielded_recrl.dialogue.comparison.recall import new_targets, served, statement
from shielded_recrl.dialogue.comparison.runs import load_critic, load_summary
from shielded_recrl.dialogue.comparison.scoring import Answers, report
from shielded_recrl.dialogue.comparison.systems import Sampled, best, kl_bound, respond
from shielded_recrl.dialogue.corpus.dialogues import SLOT
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
    spread,
)
from shielded_recrl.dialogue.rl.policy import distance, load_policy
from shielded_recrl.dialogue.settings import AnnotateSettings, DialogueEvaluationSettings
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
    critic_report: Path,
    run: Path,
    scratch: Path,
    settings: Annotated[DialogueEvaluationSettings, tyro.conf.arg(name="")],
    labels: Annotated[AnnotateSettings, tyro.conf.arg(name="labels")],
    emotion_model: Path | None = None,
) -> None:
    """Compare supervised, best-of-N and RL responses on test dialogues.

    Args:
        inputs: what responses are written from.
        supervised: folder of the supervised adapter.
        reward_critic: folder of the trained critic.
        critic_report: report.json of `critic`, which says who taught the critic.
        run: folder of a run of `train`; evaluation.json and responses.jsonl are written there.
        scratch: folder of the language models' answers; they are kept, since each was paid for.
        settings: how many turns are answered, how often, and which language models are asked.
        labels: what labels responses with emotions.
        emotion_model: folder of the emotion classifier; not read where a list of words labels.
    """
    read = {**inputs.files(), "supervised": supervised, "critic": reward_critic}
    summary = trained(run, read, inputs.form())
    taught = teachers(critic_report, reward_critic)
    panel.check(settings)
    prompts, seed = inputs.prompts(), inputs.seed
    test = prompts.dialogues.split("test")
    requests = spread(prompts.requests("test"), settings.test_turns)
    if len({request.dialogue for request in requests}) < 2:
        raise UserError(
            f"{inputs.data}: intervals need turns of two test dialogues at least; give more dialogues"
        )
    wanted = new_targets(test, prompts.recommended)
    model = load_policy(
        inputs.base, supervised, run / "adapter", inputs.precision, default_device()
    )
    moved = distance(model)
    if not moved["norm"] > 0:
        raise UserError(
            f"{run}: the policy's weights are those of the supervised LM, so there is nothing to "
            "compare; give more steps than dialogue.rl.value_warmup"
        )
    sampled = {
        name: sample(model, prompts, requests, inputs, settings, adapter=name == RL)
        for name in (SUPERVISED, RL)
    }
    scorer = Critic.load(reward_critic, default_device())
    texts = systems(sampled, requests, scorer)
    titles = prompts.dialogues.items["title"].to_list()
    judges: dict[str, Judge] = {
        "rules": Rules(titles),
        "unseen": Unseen.fit(prompts.dialogues.split("train")),
    }
    scores = panel.embedded(judges, requests, texts)
    for system, found in panel.asked(settings, scratch, requests, texts).items():
        scores[system] |= found
    probabilities = labeller(emotion_model, labels)
    contexts = [request.context for request in requests]
    answers = {
        name: Answers(
            said,
            {"critic": scorer(contexts, said).numpy(), **scores[name]},
            [tuple(label for label, _ in row) for row in annotate(said, probabilities, labels)],
        )
        for name, said in texts.items()
    }
    compared = report(requests, answers, prompts.recommended, wanted, settings.bootstrap, seed)
    now = served(inputs.recommendations, prompts.dialogues, settings.bootstrap)
    # Last comes the file that says which others belong to it.
    write_jsonl(run / "responses.jsonl", rows(prompts, requests, answers))
    write_json(
        run / "evaluation.json",
        {
            "seed": summary["seed"],
            "sampling_seed": seed,
            "synthetic": read_json(inputs.data / "stats.json")["synthetic"],
            "turns": len(requests),
            "dialogues": len({request.dialogue for request in requests}),
            "temperature": settings.temperature,
            "judges": panel.about(scores, taught),
            **compared,
            "kl": divergence(sampled[RL], requests, settings, seed),
            "ended": {name: float(said.ended.mean()) for name, said in sampled.items()},
            "samples": samples(settings.best_of, summary),
            "distance": moved,
            "recommendations": statement(summary["recall"]["before"], now, inputs.recommendations),
            "inputs": {**summary["inputs"], "adapter": sha256(run / "adapter")},
            "training": {name: summary[name] for name in ("settings_sha256", "steps", "samples")},
            "files": {name: sha256(run / name) for name in ("responses.jsonl", "train.jsonl")},
        },
    )
    found = compared["comparisons"][pair_name(RL, SUPERVISED)]["scores"]
    print(
        f"{run}: {len(requests)} turns; overall of RL less supervised: "
        + ", ".join(
            "{} {mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(name, **heads["overall"])
            for name, heads in found.items()
            if heads["overall"]
        )
    )


def teachers(critic_report: Path, reward_critic: Path) -> list[str]:
    """The judges that taught a critic.

    Raises:
        UserError: the report is missing or damaged, or that of another critic.
    """
    found = load_critic(critic_report)
    if found["model"] != sha256(reward_critic):
        raise UserError(
            f"{critic_report}: the report of another critic than {reward_critic}; give its own"
        )
    return found["learned_from"]


def trained(run: Path, read: Mapping[str, Path], form: Mapping[str, Any]) -> dict[str, Any]:
    """summary.json of a run, once it is known that this is what it was trained with.

    Raises:
        UserError: it is missing or damaged, or a file or a length is another.
    """
    summary = load_summary(run)
    for name, value in form.items():
        if summary["form"].get(name) != value:
            raise UserError(
                f"--{name.replace('_', '-')}: {value}, but {run} was trained with "
                f"{summary['form'].get(name)}; evaluate with the same"
            )
    for name, file in read.items():
        if summary["inputs"].get(name) != sha256(file):
            raise UserError(
                f"{file}: not the {name} that {run} was trained with; evaluate with the same, or run "
                "`python -m shielded_recrl.dialogue train` again"
            )
    return summary


def sample(
    model: nn.Module,
    prompts: ResponsePrompts,
    requests: Sequence[ResponseRequest],
    inputs: ResponseInputs,
    settings: DialogueEvaluationSettings,
    *,
    adapter: bool,
) -> Sampled:
    """What the policy, or the supervised LM, says to each request, by the same random numbers."""
    return respond(
        model,
        prompts.tokenizer,
        [prompts.ids(request) for request in requests],
        adapter=adapter,
        samples=settings.best_of,
        response_tokens=inputs.response_tokens,
        temperature=settings.temperature,
        seed=inputs.seed,
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
    """Rows of responses.jsonl: the turn, and what each system answers.

    The slots of the person's response stand for the films that the person named, those of a system
    for the recommended ones.
    """
    dialogues = prompts.dialogues
    turns = {one.index: one.turns for one in dialogues.split("test")}

    def answer(name: str, row: int, recommended: Sequence[int]) -> dict[str, Any]:
        request, said = requests[row], answers[name]
        text = said.texts[row]
        named = turns[request.dialogue][request.turn].items if name == GOLD else recommended
        films = [
            {"item": item, "title": dialogues.title(item)} for item in named[: text.count(SLOT)]
        ]
        return {
            "text": text,
            "filled": fill(text, [film["title"] for film in films]),
            "films": films,
            "emotions": said.emotions[row],
            "overall": {
                judge: None if np.isnan(scores[row, OVERALL]) else float(scores[row, OVERALL])
                for judge, scores in said.scores.items()
            },
        }

    found = []
    for row, request in enumerate(requests):
        recommended = prompts.recommended[request.dialogue, request.turn]
        context = [{"role": turn.role, "text": prompts.said(turn)} for turn in request.context]
        found.append(
            {
                "dialogue": request.dialogue,
                "turn": request.turn,
                "context": context,
                "emotions": request.emotions,
                "recommended": request.recommended,
                "recommended_items": recommended,
                "responses": {name: answer(name, row, recommended) for name in answers},
            }
        )
    return found
