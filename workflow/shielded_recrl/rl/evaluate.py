"""Evaluate a run on users it was not trained on: drift, served ranking, simulated clicks, texts.

In: base LM, adapter snapshots, read-out, ranker states, dataset, its reviews where it has some, log
of training. Out, in the folder of the run:

    evaluation.json      every figure, see docs/rl.md
    certificate.json     what the ranking was promised, and what was measured
    explanations.jsonl   every text, before training and at each snapshot, with what both simulators
                         make of it: quality, click probability, click rate
    rankings.parquet     served top 10 before and after: step, role, user, position, item
    users.parquet        of all evaluated users: user, role, ndcg_before, ndcg_after, hr_before,
                         hr_after (float64, at 10)

The slates explained are those of the untrained adapter, so click rates differ between snapshots by
the texts alone.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.lm import load_adapter
from shielded_recrl.files import SEAL, sealed, write_json, write_jsonl
from shielded_recrl.json_parts import read_parts
from shielded_recrl.rl.evaluation.base import Triple
from shielded_recrl.rl.evaluation.bertscore import BERTScoreModel, check_bertscore
from shielded_recrl.rl.evaluation.clicks import (
    calibration,
    quality_weight_sweep,
    simulator_reports,
)
from shielded_recrl.rl.evaluation.generation import Texts, by_step, generate, groups
from shielded_recrl.rl.evaluation.proxy import (
    ceiling,
    kl_between,
    overoptimisation,
    reward_report,
    rewarded,
)
from shielded_recrl.rl.evaluation.ranking import (
    Served,
    check_readout,
    cohort,
    lm_report,
    ndcg_hr,
    people_metrics,
    ranker_scores,
    ranking_report,
    rankings,
    users_table,
)
from shielded_recrl.rl.evaluation.references import check_reviews
from shielded_recrl.rl.evaluation.slate import Slate, slate_users, top_triples
from shielded_recrl.rl.evaluation.snapshots import (
    check_snapshots,
    load_log,
    load_snapshots,
    set_adapter,
)
from shielded_recrl.rl.evaluation.text_metrics import text_metrics_report
from shielded_recrl.rl.evaluation.texts import claim_report, text_report
from shielded_recrl.rl.generate import TextInputs
from shielded_recrl.rl.rewards.study import study_reward
from shielded_recrl.rl.settings import (
    EvaluationSettings,
    RewardSettings,
    SlateSettings,
)
from shielded_recrl.settings import section
from shielded_recrl.shield.certificate import certify, cohort_scores
from shielded_recrl.shield.merge import certify_merged
from shielded_recrl.shield.serving import (
    RankingHead,
    load_readout,
    load_states,
)
from shielded_recrl.shield.settings import ShieldSettings
from shielded_recrl.shield.variants import load_shield


def main(
    *,
    inputs: Annotated[TextInputs, tyro.conf.arg(name="")],
    dataset: str,
    variant: str,
    settings: Annotated[EvaluationSettings, tyro.conf.arg(name="")],
    shield: Annotated[ShieldSettings, tyro.conf.arg(name="shield")],
    reward: Annotated[RewardSettings, tyro.conf.arg(name="reward")],
    bases: Path | None = None,
    reviews: Path | None = None,
    parts: tuple[Path, ...] = (),
) -> None:
    """Evaluate a trained explainer.

    Args:
        inputs: what the texts are made from.
        dataset: name written into the evaluation.
        variant: name written into the evaluation.
        settings: simulators and sizes.
        shield: what the run was trained under; `separate` ranks with the adapter off.
        reward: weights of the reward of training.
        bases: bases.safetensors, where the shield has some.
        reviews: reviews.parquet of the dataset; without it texts have no references.
        parts: what `rl generate` wrote, of all shards; without them the texts are sampled here.
    """
    # All that is read at the end is looked at first: sampling takes long.
    scorer = bertscore_model(settings)
    if scorer:
        check_bertscore(scorer)
    if reviews:
        check_reviews(reviews)
    run, roles_seed, seed = inputs.run, inputs.roles_seed, inputs.seed
    snapshots = load_snapshots(run / "snapshots.safetensors")
    last = max(snapshots)
    log = load_log(run / "train.jsonl", last)
    if parts:
        owner = inputs.digest(section(settings, SlateSettings))
        written = [text for part in read_parts(parts, Texts, owner) for text in part.texts]
    serving = inputs.serving(inputs.roles, roles_seed)
    states, fitted = load_states(inputs.ranker), load_readout(inputs.readout)
    model = load_base(inputs.base, inputs.precision, default_device())
    check_readout(fitted, model, inputs.readout)
    head = RankingHead.of(states, fitted)
    cohorts = [
        cohort(serving, states, users) for users in (serving.roles.protected, serving.roles.heldout)
    ]
    reference = tuple(cohort_scores(model, head, users) for users in cohorts)
    lm_alone = lm_report(model, head, cohorts[1])
    model = load_adapter(model, run / "adapter")
    check_snapshots(snapshots, model, run / "snapshots.safetensors")
    served = Served(serving, states, fitted)
    people = served.people
    with model.disable_adapter():
        scores = {0: served(model)}
    metrics = people_metrics(serving, people, scores)
    for step, weights in snapshots.items():
        set_adapter(model, weights)
        with model.disable_adapter() if shield.kind == "separate" else nullcontext():
            after_step = {step: served(model)}
        metrics |= people_metrics(serving, people, after_step)
        # Of the scores in between, a matrix each, only the metrics are wanted.
        if step == last:
            scores |= after_step

    def slates(users: np.ndarray) -> list[Triple]:
        return top_triples(serving, users, scores[0][served.rows(users)], settings.items_per_user)

    explained = slate_users(serving.roles.heldout, settings, roles_seed)
    slate = Slate(serving, slates(explained), settings, roles_seed)
    if not parts:
        asked = groups(explained, settings.items_per_user, inputs.explanation_tokens, seed)
        written = generate(model, serving, snapshots, slates, asked, inputs.sampling)
    texts = by_step(written, slate.triples, (0, *snapshots))

    guard = load_shield(shield, model, serving, head, bases, seed)
    options = {
        "kind": shield.kind,
        "alpha": settings.alpha,
        "resamples": settings.bootstrap,
        "seed": roles_seed,
    }
    certificate = certify(
        model,
        head,
        *cohorts,
        bases=guard and guard.bases,
        side=guard.side if guard else "input",
        reference=reference,
        **options,
    )
    if shield.kind not in ("separate", "activated"):
        certificate["merges"] = certify_merged(
            inputs.base, run / "adapter", head, *cohorts, settings.merge, **options
        )

    trained_on = study_reward(serving, states.test_users, states.items, model, reward)
    measured = {
        step: {**slate.measure(batch), **rewarded(trained_on, batch, slate)}
        for step, batch in texts.items()
    }
    before, after, users = measured[0], measured[last], slate.users
    alone = people_metrics(serving, people, {0: ranker_scores(states, people)})[0]
    heldout = np.isin(people, serving.roles.heldout)
    shared = (settings, roles_seed)
    simulated = simulator_reports(slate.simulators, before, after, users, *shared)
    kl = kl_between(log, measured)
    evaluation = {
        "dataset": dataset,
        "variant": variant,
        "seed": seed,
        "gamma": fitted.gamma,
        "lm": lm_alone,
        **ranking_report(metrics, alone, heldout, *shared),
        "curve": [
            {
                "step": step,
                **ndcg_hr(metrics[step], heldout),
                "ctr": float(measured[step]["clicks"].mean()),
                "ctr_examination": float(measured[step]["clicks_examination"].mean()),
                **{
                    name: float(measured[step][name].mean())
                    for name in ("quality", "quality_examination", "words", "reward")
                },
                "kl": kl[step],
            }
            for step in sorted(measured)
        ],
        "drift": {role: certificate[role] for role in ("protected", "heldout")},
        "reward": {
            **reward_report(before["reward"], after["reward"], users, *shared),
            "ceiling": ceiling(trained_on.weights),
        },
        "overoptimisation": overoptimisation(measured, users, *shared),
        "ctr": simulated[slate.claims.name],
        "simulators": simulated,
        "quality_weight_sweep": quality_weight_sweep(
            slate.simulators, before, after, users, *shared
        ),
        "calibration": calibration(slate.simulators, before, after, users, *shared),
        "claims": claim_report(before, after, users, *shared),
        "text": {
            f"{name}_{when}": value
            for when, step in (("before", 0), ("after", last))
            for name, value in text_report(texts[step], measured[step]).items()
        },
        "texts": text_metrics_report(
            *(texts[0], texts[last], slate.requests, reviews, users),
            *(settings.bootstrap, roles_seed, scorer),
        ),
        "kl": float(np.mean([row["kl"] for row in log[-max(1, len(log) // 4) :]])),
    }
    write_jsonl(run / "explanations.jsonl", slate.rows(texts, measured))
    tables = {
        "rankings.parquet": rankings(serving, people, scores),
        "users.parquet": users_table(serving, people, metrics),
    }
    for name, table in tables.items():
        with sealed(run / name) as partial:
            table.write_parquet(partial, metadata=SEAL)
    write_json(run / "certificate.json", certificate)
    write_json(run / "evaluation.json", evaluation)
    clicks, drift = evaluation["ctr"], evaluation["drift"]["heldout"]
    print(
        f"{run}: CTR {clicks['before']:.3f} -> {clicks['after']:.3f}, "
        f"held-out top 10 identical {drift['top10_identical']:.3f}"
    )


def bertscore_model(settings: EvaluationSettings) -> BERTScoreModel | None:
    """What BERTScore is computed with, if the study asks for it."""
    if settings.bertscore_model is None:
        return None
    return BERTScoreModel(Path(settings.bertscore_model), settings.bertscore_layer)
