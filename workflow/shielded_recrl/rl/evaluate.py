"""Evaluate a run on users it was not trained on: drift, served ranking, simulated clicks, texts.

In: base LM, adapter snapshots, read-out, ranker states, dataset, log of training. Out:
evaluation.json, certificate.json (what the ranking was promised, and what was measured),
explanations.jsonl (every text, before training and at each snapshot) and rankings.parquet (served
top 10 before and after). The slates explained are those of the untrained adapter, so click rates
differ between snapshots by the texts alone.

Reward is watched beside what it stands for (Gao, Schulman and Hilton 2023, "Scaling Laws for Reward
Model Overoptimization"): the reward of training is the proxy, the quality that the simulator's
users see is the gold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
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
from shielded_recrl.rl.evaluation.slate import Slate
from shielded_recrl.rl.rewards.base import TOTAL, Reward
from shielded_recrl.rl.rewards.study import study_reward
from shielded_recrl.rl.settings import EvaluationSettings, RewardSettings, SamplingSettings
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
from shielded_recrl.statistics import Interval, bootstrap, paired_bootstrap

# Relative CTR published for explanations trained by reinforcement learning, to be placed on the
# scale of a simulator: what is attainable there hangs on its quality_weight and on the base's texts.
PUBLISHED_RELATIVE_CTR = 1.225
# What `rl train` calls a weight of a snapshot.
SNAPSHOT_KEY = re.compile(r"step-(\d+)/(.+)")


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
    snapshots = load_snapshots(run / "snapshots.safetensors")
    last = max(snapshots)
    log = load_log(run / "train.jsonl", last)
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
    check_snapshots(snapshots, model, run / "snapshots.safetensors")
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

    trained_on = study_reward(serving, states.test_users, states.items, model, reward)
    measured = {
        step: {**slate.measure(batch), "reward": proxy(trained_on, batch, slate)}
        for step, batch in texts.items()
    }
    quarter = log[-max(1, len(log) // 4) :]
    evaluation = {
        "dataset": dataset,
        "variant": variant,
        "seed": seed,
        "gamma": fitted.gamma,
        "lm": lm_alone,
        **ranking_report(
            serving, states, people, scores, measured, kl_between(log, scores), settings, roles_seed
        ),
        "drift": {role: certificate[role] for role in ("protected", "heldout")},
        "reward": {
            **reward_report(
                *(measured[step]["reward"] for step in (0, last)), slate.users, settings, roles_seed
            ),
            "ceiling": ceiling(trained_on.weights),
        },
        "overoptimisation": overoptimisation(measured, slate.users, settings, roles_seed),
        "ctr": click_report(slate, measured[0], measured[last], settings, roles_seed),
        "claims": claim_report(measured[0], measured[last], slate.users, settings, roles_seed),
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


def load_snapshots(path: Path) -> dict[int, dict[str, np.ndarray]]:
    """Adapter weights by step, ascending.

    Args:
        path: snapshots.safetensors.

    Raises:
        UserError: the file is missing, damaged or empty, or a key is no `step-<number>/<weight>`.
    """
    snapshots: dict[int, dict[str, np.ndarray]] = {}
    for key, tensor in read_tensors(path).items():
        named = SNAPSHOT_KEY.fullmatch(key)
        if not named:
            raise UserError(
                f"{path}: expected keys such as step-000004/<weight>, got {key!r}; "
                "train the run again"
            )
        snapshots.setdefault(int(named[1]), {})[named[2]] = tensor
    if not snapshots:
        raise UserError(f"{path}: no snapshot in it; train the run again")
    return dict(sorted(snapshots.items()))


def check_snapshots(
    snapshots: dict[int, dict[str, np.ndarray]], model: torch.nn.Module, path: Path
) -> None:
    """Refuse snapshots that hold other weights, or weights of other shapes, than the adapter.

    Args:
        snapshots: weights by step.
        model: PEFT model.
        path: of the snapshots, for the error.

    Raises:
        UserError: a snapshot does not fit.
    """
    wanted = {name: tuple(weight.shape) for name, weight in adapter_parameters(model).items()}
    for step, weights in snapshots.items():
        if {name: weight.shape for name, weight in weights.items()} != wanted:
            raise UserError(
                f"{path}: step {step} is no snapshot of this run's adapter; train the run again"
            )


def load_log(path: Path, last: int) -> list[dict[str, Any]]:
    """Rows of train.jsonl, one a step.

    Args:
        path: train.jsonl.
        last: step the snapshots end at.

    Raises:
        UserError: the file is missing or damaged, does not hold steps 1 to `last`, or a row has no
            finite `kl`.
    """
    try:
        rows = read_jsonl(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable log ({error}); train the run again") from error
    if not all(isinstance(row, dict) for row in rows) or (
        [row.get("step") for row in rows] != list(range(1, last + 1))
    ):
        raise UserError(
            f"{path}: expected the rows of steps 1 to {last}, where the snapshots end; "
            "train the run again"
        )
    for row in rows:
        kl = row.get("kl")
        if not isinstance(kl, int | float) or not math.isfinite(kl):
            raise UserError(
                f"{path}, step {row['step']}: expected a finite number under kl, got {kl!r}; "
                "train the run again"
            )
    return rows


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
    kl: dict[int, float],
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
                "reward": float(measured[step]["reward"].mean()),
                "kl": kl[step],
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


def proxy(reward: Reward, texts: Sequence[str], slate: Slate) -> np.ndarray:
    """Total reward [n] of each text of a slate."""
    prompts = slate.tokenizer.batch_decode([list(request.prompt) for request in slate.requests])
    return reward(prompts, texts, slate.requests)[TOTAL].double().numpy()


def ceiling(weights: Mapping[str, float]) -> float:
    """Largest total: components lie in [0, 1], penalties have a negative weight."""
    return sum(weight for weight in weights.values() if weight > 0)


def kl_between(log: Sequence[dict[str, Any]], steps: Iterable[int]) -> dict[int, float]:
    """Per-token KL to the base at each of the steps: mean over the steps since the one before.

    A single step's estimate is noisy; the mean lags behind by half the steps between. At step 0
    the policy is the base.

    >>> kl_between([{"step": 1, "kl": 0.1}, {"step": 2, "kl": 0.3}], [0, 2])
    {0: 0.0, 2: 0.2}

    Args:
        log: rows of train.jsonl.
        steps: steps to measure at, 0 among them, each a step of the log.
    """
    first, *rest = sorted(steps)
    means = {first: 0.0}
    for before, step in pairwise((first, *rest)):
        means[step] = fmean(row["kl"] for row in log if before < row["step"] <= step)
    return means


def overoptimisation(
    measured: dict[int, dict[str, np.ndarray]],
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, float | int | bool]:
    """Whether gold fell from its peak while the proxy rose, with paired user-clustered intervals.

    `found` asks for both 95% intervals to lie above 0. The peak is picked among the K steps before
    the last by the same texts, so that a run with nothing to find is flagged with a probability of
    at most 0.025 K, not 0.025.

    Args:
        measured: quality and reward [n] of each text, by step.
        users: of each text.
        settings: resamples.
        seed: of the bootstrap.
    """
    last = max(measured)
    peak = max(sorted(measured), key=lambda step: measured[step]["quality"].mean())
    fall, rise = (
        paired_bootstrap(difference, settings.bootstrap, seed, users)
        for difference in (
            measured[peak]["quality"] - measured[last]["quality"],
            measured[last]["reward"] - measured[peak]["reward"],
        )
    )
    return {
        "peak": peak,
        **_with_ends("gold_fall", fall),
        **_with_ends("proxy_rise", rise),
        "found": fall.low > 0 and rise.low > 0,
    }


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
        **_with_ends("gain", gain),
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
    `lift_share` is (after - before) / (attainable - before), in rates. `from_empty` is the CTR at
    quality 1 over that at quality 0, all that texts can do in this simulator; `published_share` is
    where the published relative CTR lies on the scale of `lift_share`, above 1 out of reach.
    """
    best, empty = (
        slate.clicks(np.full(len(slate.triples), quality))["clicks"] for quality in (1.0, 0.0)
    )
    columns = np.stack([before["clicks"], after["clicks"], best], axis=1)
    means = {
        name: rates.mean()
        for name, rates in zip(
            ("before", "after", "best", "empty"), (*columns.T, empty), strict=True
        )
    }
    # Without a click, or with no lift to be had, a ratio is undefined and reported as null.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, share = (
            bootstrap(columns, statistic, settings.bootstrap, seed, slate.users)
            for statistic in (
                lambda s: s[..., 1] / s[..., 0],
                lambda s: (s[..., 1] - s[..., 0]) / (s[..., 2] - s[..., 0]),
            )
        )
        attainable = means["best"] / means["before"]
        from_empty = means["best"] / means["empty"]
        published = (PUBLISHED_RELATIVE_CTR - 1) / (attainable - 1)
    return _finite_or_null(
        {
            "before": means["before"],
            "after": means["after"],
            **_with_ends("relative", ratio),
            "attainable": attainable,
            **_with_ends("lift_share", share),
            "from_empty": from_empty,
            "published_share": published,
        }
    )


def claim_report(
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    users: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, float | None]:
    """Claim precision: the share of claims, over all texts, that item and history support.

    A claim is a title or a category of the catalogue, counted once a text. `change` has a paired
    bootstrap that draws users; null where a rate has nothing to divide by, in a resample, too.
    `named` is the mean number of claims a text, as a policy that claims nothing is never wrong.
    """
    columns = np.stack(
        [texts[key] for texts in (before, after) for key in ("supported", "claims")], axis=1
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = columns.sum(axis=0)
        precision = sums[[0, 2]] / sums[[1, 3]]
        change = bootstrap(
            columns,
            lambda s: s[..., 2] / s[..., 3] - s[..., 0] / s[..., 1],
            settings.bootstrap,
            seed,
            users,
        )
    return _finite_or_null(
        {
            "precision_before": precision[0],
            "precision_after": precision[1],
            **_with_ends("change", change),
            "named_before": before["claims"].mean(),
            "named_after": after["claims"].mean(),
        }
    )


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


def _with_ends(name: str, interval: Interval) -> dict[str, float]:
    """An estimate under its name, and the ends of its interval."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _finite_or_null(values: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
