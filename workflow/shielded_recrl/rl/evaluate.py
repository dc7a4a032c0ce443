"""Evaluate a run on users it was not trained on: drift, served ranking, simulated clicks, texts.

In: base LM, adapter snapshots, read-out, ranker states, dataset. Out: evaluation.json,
certificate.json (what the ranking was promised, and what was measured), explanations.jsonl (every
text, before training and at each snapshot) and rankings.parquet (served top 10 before and after). The slates explained are those of the untrained adapter, so click rates
differ between snapshots by the texts alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
import tyro

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.lm import adapter_parameters, hidden_size, load_adapter
from shielded_recrl.explainer.settings import Precision, PromptSettings
from shielded_recrl.files import atomic, read_jsonl, write_json, write_jsonl
from shielded_recrl.ranker.metrics import ranking_metrics, top_k
from shielded_recrl.rl.rewards import composite, vocabulary
from shielded_recrl.rl.settings import EvaluationSettings, RewardSettings, SamplingSettings
from shielded_recrl.rl.slate import Slate
from shielded_recrl.shield.certificate import Cohort, certify, cohort_scores
from shielded_recrl.shield.merge import certify_merged
from shielded_recrl.shield.serving import (
    RankerStates,
    RankingHead,
    ReadOut,
    Serving,
    load_readout,
    load_states,
    read_tensors,
    served_scores,
    served_states,
)
from shielded_recrl.shield.settings import RoleSettings, ShieldSettings
from shielded_recrl.shield.variants import load_shield
from shielded_recrl.statistics import bootstrap, paired_bootstrap


def main(
    *,
    data: Path,
    ranker: Path,
    base: Path,
    run: Path,
    readout: Path,
    templates: Path,
    dataset: str,
    variant: str,
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")],
    roles: Annotated[RoleSettings, tyro.conf.arg(name="")],
    sampling: Annotated[SamplingSettings, tyro.conf.arg(name="")],
    settings: Annotated[EvaluationSettings, tyro.conf.arg(name="")],
    shield: Annotated[ShieldSettings, tyro.conf.arg(name="shield")],
    reward: Annotated[RewardSettings, tyro.conf.arg(name="reward")],
    bases: Path | None = None,
    explanation_tokens: int = 32,
    precision: Precision = "fp32",
    roles_seed: int = 42,
    seed: int = 42,
) -> None:
    """Evaluate a trained explainer.

    Args:
        data: folder of the prepared dataset.
        ranker: states.safetensors of the ranker.
        base: folder of the base LM.
        run: folder of the run; evaluation.json, explanations.jsonl, rankings.parquet go there.
        readout: readout.safetensors.
        templates: folder of the prompt templates.
        dataset: name written into the evaluation.
        variant: name written into the evaluation.
        prompt: prompt lengths.
        roles: how many users are protected and held out.
        sampling: how texts are sampled.
        settings: simulator and sizes.
        shield: what the run was trained under; `separate` ranks with the adapter off.
        reward: weights of the reward of training.
        bases: bases.safetensors, where the shield has some.
        explanation_tokens: longest explanation.
        precision: precision the base is served in.
        roles_seed: seed of roles, simulator and bootstrap, shared by all runs.
        seed: seed of this run's text sampling.
    """
    serving = Serving.load(data, base, templates, prompt, roles, roles_seed)
    states, fitted = load_states(ranker), load_readout(readout)
    model = load_base(base, precision, default_device())
    if fitted.weight.shape[1] != hidden_size(model):
        raise UserError(
            f"{readout}: made for hidden states of width {fitted.weight.shape[1]}, but the base LM "
            f"has {hidden_size(model)}; fit the read-out again with this base"
        )
    head = RankingHead.of(states, fitted)
    cohorts = [
        cohort(serving, states, users) for users in (serving.roles.protected, serving.roles.heldout)
    ]
    reference = tuple(cohort_scores(model, head, users) for users in cohorts)
    lm_alone = lm_report(model, head, cohorts[1])
    model = load_adapter(model, run / "adapter")
    snapshots = load_snapshots(run / "snapshots.safetensors", set(adapter_parameters(model)))
    people = np.concatenate([serving.roles.protected, serving.roles.heldout])
    prefixes = [serving.prefix(user) for user in people]

    def served() -> np.ndarray:
        hidden = served_states(model, prefixes).numpy()
        return served_scores(states.test_users[people], hidden, states.items, fitted)

    with model.disable_adapter():
        scores = {0: served()}
        slate = Slate(serving, scores[0], people, settings, roles_seed)
        texts = {0: slate.explain(model, explanation_tokens, sampling, seed)}
    for step, weights in snapshots.items():
        set_adapter(model, weights)
        texts[step] = slate.explain(model, explanation_tokens, sampling, seed)
        if shield.kind == "separate":
            with model.disable_adapter():
                scores[step] = served()
        else:
            scores[step] = served()

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
            base, run / "adapter", head, *cohorts, settings.merge, **options
        )

    last = max(snapshots)
    categories = vocabulary(serving.prompts.items)
    rewards = [
        composite(texts[step], slate.requests, categories, reward)["total"] for step in (0, last)
    ]
    measured = {step: slate.measure(texts[step]) for step in texts}
    log = read_jsonl(run / "train.jsonl")
    quarter = log[-max(1, len(log) // 4) :]
    evaluation = {
        "dataset": dataset,
        "variant": variant,
        "seed": seed,
        "gamma": fitted.gamma,
        "lm": lm_alone,
        **ranking_report(serving, states, people, scores, measured, settings, roles_seed),
        "drift": {role: certificate[role] for role in ("protected", "heldout")},
        "reward": reward_report(*rewards, slate.users, settings, roles_seed),
        "ctr": click_report(slate, measured[0], measured[last], settings, roles_seed),
        "text": {
            f"{name}_{when}": value
            for when, step in (("before", 0), ("after", last))
            for name, value in text_report(texts[step], measured[step]).items()
        },
        "kl": float(np.mean([row["kl"] for row in quarter])),
    }
    write_jsonl(run / "explanations.jsonl", slate.rows(texts, measured))
    with atomic(run / "rankings.parquet") as partial:
        rankings(serving, people, {step: scores[step] for step in (0, last)}).write_parquet(partial)
    write_json(run / "certificate.json", certificate)
    write_json(run / "evaluation.json", evaluation)
    clicks, heldout = evaluation["ctr"], evaluation["drift"]["heldout"]
    print(
        f"{run}: CTR {clicks['before']:.3f} -> {clicks['after']:.3f}, "
        f"held-out top 10 identical {heldout['top10_identical']:.3f}"
    )


def load_snapshots(path: Path, names: set[str]) -> dict[int, dict[str, np.ndarray]]:
    """Adapter weights by step, ascending.

    Args:
        path: snapshots.safetensors.
        names: weights of the adapter.

    Raises:
        UserError: the file is missing, damaged or empty, or holds another adapter.
    """
    snapshots: dict[int, dict[str, np.ndarray]] = {}
    for key, tensor in sorted(read_tensors(path).items()):
        step, name = key.split("/", 1)
        snapshots.setdefault(int(step.removeprefix("step-")), {})[name] = tensor
    if not snapshots or any(set(weights) != names for weights in snapshots.values()):
        raise UserError(f"{path}: no snapshot of this run's adapter in it; train the run again")
    return snapshots


@torch.no_grad()
def set_adapter(model: torch.nn.Module, weights: dict[str, np.ndarray]) -> None:
    """Put the weights of a snapshot into the adapter."""
    for name, parameter in adapter_parameters(model).items():
        parameter.copy_(torch.from_numpy(weights[name]))


def ranking_report(
    serving: Serving,
    states: RankerStates,
    people: np.ndarray,
    scores: dict[int, np.ndarray],
    measured: dict[int, dict[str, np.ndarray]],
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, Any]:
    """SASRec alone and the served ranking on held-out users at every snapshot."""
    relevant = serving.splits.relevant_mask("test", people)
    seen = serving.splits.seen_mask("test", people)
    no_readout = ReadOut(np.zeros((states.items.shape[1], 1)), 0.0)
    alone = served_scores(
        states.test_users[people], np.zeros((len(people), 1)), states.items, no_readout
    )
    protected = np.isin(people, serving.roles.protected)
    # Protected users are held still by construction: the ranking is judged on the others.
    rows = ~protected
    metrics = {
        step: ranking_metrics(matrix[rows], relevant[rows], seen[rows])
        for step, matrix in scores.items()
    }
    means = {step: _ndcg_hr(values) for step, values in metrics.items()}
    last = max(scores)
    change = paired_bootstrap(metrics[last].ndcg - metrics[0].ndcg, settings.bootstrap, seed)
    return {
        "ranker": _ndcg_hr(ranking_metrics(alone[rows], relevant[rows], seen[rows])),
        "served_before": means[0],
        "served_after": means[last],
        "ndcg_change": change._asdict(),
        "curve": [
            {
                "step": step,
                **means[step],
                "ctr": float(measured[step]["clicks"].mean()),
                "quality": float(measured[step]["quality"].mean()),
                "words": float(measured[step]["words"].mean()),
            }
            for step in sorted(scores)
        ],
    }


def lm_report(model: torch.nn.Module, head: RankingHead, heldout: Cohort) -> dict[str, float]:
    """NDCG@10 and HR@10 of held-out users when the LM ranks without the ranker."""
    scores = cohort_scores(model, replace(head, gamma=1.0), replace(heldout, offset=None))
    matrices = (scores, heldout.relevant, heldout.seen)
    return _ndcg_hr(ranking_metrics(*(np.pad(matrix, ((0, 0), (1, 0))) for matrix in matrices)))


def cohort(serving: Serving, states: RankerStates, users: np.ndarray) -> Cohort:
    """Users as the certificate wants them: what they are served, and what they are to find."""
    return Cohort(
        prompts=[serving.prefix(user) for user in users],
        offset=states.test_users[users].astype(np.float64) @ states.items[1:].T.astype(np.float64),
        seen=serving.splits.seen_mask("test", users)[:, 1:],
        relevant=serving.splits.relevant_mask("test", users)[:, 1:],
    )


def reward_report(
    before: np.ndarray,
    after: np.ndarray,
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, float]:
    """Mean reward of held-out explanations, and its gain with a user-clustered interval."""
    gain = paired_bootstrap(after - before, settings.bootstrap, seed, users)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }


def click_report(
    slate: Slate,
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, float | None]:
    """Click-through rates with user-clustered paired bootstrap intervals.

    `relative` is after / before; `attainable` is the relative CTR if every text had quality 1;
    `lift_share` is (after - before) / (attainable - before).
    """
    best = slate.clicks(np.ones(len(slate.triples)))["clicks"]
    columns = np.stack([before["clicks"], after["clicks"], best], axis=1)
    # Without a click, or with no lift to be had, a ratio is undefined and reported as null.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = bootstrap(
            columns, lambda s: s[..., 1] / s[..., 0], settings.bootstrap, seed, slate.users
        )
        share = bootstrap(
            columns,
            lambda s: (s[..., 1] - s[..., 0]) / (s[..., 2] - s[..., 0]),
            settings.bootstrap,
            seed,
            slate.users,
        )
    report = {
        "before": before["clicks"].mean(),
        "after": after["clicks"].mean(),
        "relative": ratio.mean,
        "relative_low": ratio.low,
        "relative_high": ratio.high,
        "attainable": np.divide(*columns.mean(axis=0)[[2, 0]]),
        "lift_share": share.mean,
        "lift_share_low": share.low,
        "lift_share_high": share.high,
    }
    return {name: float(value) if np.isfinite(value) else None for name, value in report.items()}


def text_report(texts: list[str], measured: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean words and quality, share of distinct texts, share of empty texts."""
    return {
        "words": float(measured["words"].mean()),
        "quality": float(measured["quality"].mean()),
        "unique": len(set(texts)) / len(texts),
        "empty": float((measured["words"] == 0).mean()),
    }


def rankings(serving: Serving, people: np.ndarray, scores: dict[int, np.ndarray]) -> pl.DataFrame:
    """Served top 10 of every evaluated user at each step."""
    seen = serving.splits.seen_mask("test", people)
    roles = np.where(np.isin(people, serving.roles.protected), "protected", "heldout")
    frames = [
        pl.DataFrame(
            {
                "step": pl.Series(np.full(len(people) * 10, step), dtype=pl.Int32),
                "role": np.repeat(roles, 10),
                "user": pl.Series(np.repeat(people, 10), dtype=pl.Int32),
                "position": pl.Series(np.tile(np.arange(1, 11), len(people)), dtype=pl.Int32),
                "item": pl.Series(top_k(matrix, seen).ravel(), dtype=pl.Int32),
            }
        )
        for step, matrix in scores.items()
    ]
    return pl.concat(frames).filter(pl.col("item") > 0)


def _ndcg_hr(metrics: Any) -> dict[str, float]:
    means = metrics.means()
    return {name: means[name] for name in ("ndcg@10", "hr@10")}
