"""The columns of aggregate_results.csv: their names, what they mean and where they come from.

In: a `Run`. Out: one row. A cell is empty only where its column says why it can be, and the row's
notes then repeat that reason.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from shielded_recrl.errors import UserError
from shielded_recrl.report.certificates import PRECISIONS, merge_of
from shielded_recrl.report.runs import Run
from shielded_recrl.report.settings import TableSettings

Row = dict[str, Any]

# File of a run behind each document, to name in an error.
FILES = {
    "evaluation": "evaluation.json",
    "certificate": "certificate.json",
    "summary": "summary.json",
    "audit": "its audit",
    "stats": "its stats.json",
}
NO_CLICK = "no click before training to compare with"
NO_EMPTY_CLICK = "no click on empty texts to compare with"
NO_LIFT = "perfect texts would not raise the click-through rate"
NO_CLAIM = "too few texts name a title or a category to judge their claims"
NO_REFERENCES = "too few texts are about an item that somebody reviewed"
NO_GROUPS = "no grouping of users is evaluable"
NO_PAIR = "fewer than two texts name a feature or a word"
NO_ORDER = "a ranking without two different scores has no order"
NO_TARGET = "no user has an unseen item to find"
NO_MERGE = "the adapter cannot be merged, or was not: notes say why"


class Column(NamedTuple):
    """One column.

    Attributes:
        name: header in the CSV.
        description: one line for the documentation.
        source: document and keys, joined by dots, or a function of the run.
        kind: type of the value.
        empty: why a cell can be empty; None where it never is.
        why: reason why a run's cell is empty, where there is more than one.
    """

    name: str
    description: str
    source: str | Callable[[Run], Any]
    kind: type = float
    empty: str | None = None
    why: Callable[[Run], str | None] | None = None


def quarter_mean(values: Sequence[float], last: bool) -> float:
    """Mean of the first or the last quarter of the values, of at least one.

    >>> quarter_mean([1, 2, 3, 4, 5, 6, 7, 8], last=True)
    7.5
    """
    size = max(1, len(values) // 4)
    return fmean(values[-size:] if last else values[:size])


def provenance(run: Run) -> str:
    """Start of a SHA-256 over adapter, evaluation, certificate and audit: no timing, no paths."""
    content = {
        "adapter": run.summary.get("adapter_sha256"),
        "evaluation": run.evaluation,
        "certificate": run.certificate,
        "audit": run.audit,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _reward(last: bool) -> Callable[[Run], float]:
    def mean(run: Run) -> float:
        try:
            return quarter_mean([float(step["reward"]) for step in run.steps], last)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{run.folder / 'train.jsonl'}: a row has no number 'reward'; train the run again"
            ) from None

    return mean


def _pair(name: str, what: str, source: str) -> list[Column]:
    """The same value before and after training; name and source have a slot for which."""
    return [
        Column(name.format(when), f"{what} {when} training", source.format(when))
        for when in ("before", "after")
    ]


def _interval(
    name: str,
    what: str,
    mean: str,
    low: str,
    high: str,
    empty: str | None = None,
    of: str = "the 95% interval",
) -> list[Column]:
    """A value and the two ends of its interval, with the source of each."""
    return [
        Column(name, what, mean, empty=empty),
        Column(f"{name}_low", f"{what}, lower end of {of}", low, empty=empty),
        Column(f"{name}_high", f"{what}, upper end of {of}", high, empty=empty),
    ]


def _drift(role: str, people: str) -> list[Column]:
    return [
        Column(
            f"drift_{role}_{key}", f"{what}, {people}", f"evaluation.drift.{role}.{key}", kind, why
        )
        for key, what, kind, why in (
            ("users", "Users measured", int, None),
            ("max_score_change", "Largest absolute change of a score", float, None),
            ("mean_score_change", "Mean absolute change of a score", float, None),
            ("top10_identical", "Share of users with an unchanged top 10", float, None),
            ("kendall_tau", "Mean Kendall tau of the rankings", float, NO_ORDER),
            ("ndcg_change", "Change of served NDCG@10", float, NO_TARGET),
        )
    ]


def _merged(precision: str) -> list[Column]:
    """Drift of held-out users once the adapter is merged; empty where that was not measured."""

    def source(key: str) -> Callable[[Run], float | None]:
        def value(run: Run) -> float | None:
            if merge_of(run, precision)[0] is None:
                return None
            return _look_up(run, f"certificate.merges.{precision}.heldout.{key}", float, False)

        return value

    return [
        Column(
            f"merged_{precision}_{key}",
            f"{what}, held-out users, adapter merged into {precision}",
            source(key),
            empty=NO_MERGE,
            why=lambda run: merge_of(run, precision)[1],
        )
        for key, what in (
            ("top10_identical", "Share of users with an unchanged top 10"),
            ("max_score_change", "Largest absolute change of a score"),
        )
    ]


COLUMNS = [
    Column("dataset", "Key of the dataset in the config", "evaluation.dataset", str),
    Column("synthetic", "Whether the raw data are the embedded ones", "stats.synthetic", bool),
    Column("sequential", "Whether the source tells an order", "stats.sequential", bool),
    Column("users", "Users kept by preparation", "stats.users", int),
    Column("variant", "Key of the variant in the config", "evaluation.variant", str),
    Column("seed", "Seed of training and sampling", "evaluation.seed", int),
    Column("shield", "Kind of shield", "summary.shield.kind", str),
    Column("steps", "PPO steps", "summary.steps", int),
    Column("trainable_share", "Trained share of all parameters", "summary.trainable_share"),
    Column("gamma", "Weight of the read-out in the served score", "evaluation.gamma"),
    Column(
        "ranker_ndcg@10", "NDCG@10 of SASRec alone, held-out users", "evaluation.ranker.ndcg@10"
    ),
    Column("ranker_hr@10", "HR@10 of SASRec alone, held-out users", "evaluation.ranker.hr@10"),
    Column("lm_ndcg@10", "NDCG@10 of the base LM alone, held-out users", "evaluation.lm.ndcg@10"),
    Column("lm_hr@10", "HR@10 of the base LM alone, held-out users", "evaluation.lm.hr@10"),
    *_pair("served_{}_ndcg@10", "Served NDCG@10, held-out users,", "evaluation.served_{}.ndcg@10"),
    *_pair("served_{}_hr@10", "Served HR@10, held-out users,", "evaluation.served_{}.hr@10"),
    *_interval(
        "ndcg_change",
        "Change of served NDCG@10, held-out users",
        *(f"evaluation.ndcg_change.{end}" for end in ("mean", "low", "high")),
    ),
    *_drift("protected", "protected users"),
    *_drift("heldout", "held-out users"),
    *_interval(
        "drift_heldout_top10_changed",
        "Share of users with a changed top 10, held-out users",
        *(f"evaluation.drift.heldout.changed_top10.{end}" for end in ("share", "low", "high")),
        of="the certificate's Clopper-Pearson interval",
    ),
    Column(
        "certificate_protected",
        "Verdict on protected users: exact or approximate",
        "certificate.verdict.protected",
        str,
    ),
    Column(
        "certificate_heldout",
        "Verdict on held-out users: exact or approximate",
        "certificate.verdict.heldout",
        str,
    ),
    *(column for precision in PRECISIONS for column in _merged(precision)),
    *_pair("ctr_{}", "Simulated click-through rate", "evaluation.ctr.{}"),
    *_interval(
        "ctr_relative",
        "Click-through rate after over before training",
        *(f"evaluation.ctr.relative{end}" for end in ("", "_low", "_high")),
        empty=NO_CLICK,
    ),
    Column(
        "ctr_attainable",
        "Click-through rate with perfect texts over before training",
        "evaluation.ctr.attainable",
        empty=NO_CLICK,
    ),
    Column(
        "ctr_from_empty",
        "Click-through rate with perfect texts over empty texts",
        "evaluation.ctr.from_empty",
        empty=NO_EMPTY_CLICK,
    ),
    *_interval(
        "lift_share",
        "Achieved share of the lift that perfect texts would bring",
        *(f"evaluation.ctr.lift_share{end}" for end in ("", "_low", "_high")),
        empty=NO_LIFT,
    ),
    Column(
        "published_share",
        "Where the published relative CTR, 1.225, lies on the scale of lift_share",
        "evaluation.ctr.published_share",
        empty=NO_LIFT,
    ),
    *(
        column
        for name, what, empty in (
            ("relative", "Click-through rate after over before training", NO_CLICK),
            ("lift_share", "Achieved share of the lift that perfect texts would bring", NO_LIFT),
        )
        for column in _interval(
            f"examination_{name}",
            f"{what}, second simulator",
            *(f"evaluation.simulators.examination.{name}{end}" for end in ("", "_low", "_high")),
            empty=empty,
        )
    ),
    Column("kl", "Per-token KL to the base, last quarter of training", "evaluation.kl"),
    Column("reward_first", "Mean reward, first quarter of training", _reward(last=False)),
    Column("reward_last", "Mean reward, last quarter of training", _reward(last=True)),
    *_pair(
        "heldout_reward_{}", "Mean reward of held-out users' explanations", "evaluation.reward.{}"
    ),
    *_interval(
        "heldout_reward_gain",
        "Reward gained on held-out users' explanations",
        *(f"evaluation.reward.gain{end}" for end in ("", "_low", "_high")),
    ),
    *_interval(
        "gold_fall",
        "Quality lost since the best snapshot",
        *(f"evaluation.overoptimisation.gold_fall{end}" for end in ("", "_low", "_high")),
    ),
    *_interval(
        "proxy_rise",
        "Reward gained since the snapshot of best quality",
        *(f"evaluation.overoptimisation.proxy_rise{end}" for end in ("", "_low", "_high")),
    ),
    Column(
        "overoptimised",
        "Whether the intervals of gold_fall and proxy_rise both lie above 0",
        "evaluation.overoptimisation.found",
        bool,
    ),
    *_pair("words_{}", "Mean words of an explanation", "evaluation.text.words_{}"),
    *_pair("quality_{}", "Mean quality of an explanation", "evaluation.text.quality_{}"),
    *_pair("unique_{}", "Distinct texts over all texts", "evaluation.text.unique_{}"),
    *(
        column._replace(empty=NO_CLAIM)
        for column in _pair(
            "claim_precision_{}",
            "Share of named titles and categories that item and history support",
            "evaluation.claims.precision_{}",
        )
    ),
    *_interval(
        "claim_precision_change",
        "Change of claim precision",
        *(f"evaluation.claims.change{end}" for end in ("", "_low", "_high")),
        empty=NO_CLAIM,
    ),
    *_pair("claims_{}", "Mean titles and categories named by a text", "evaluation.claims.named_{}"),
    *(
        column._replace(empty=NO_REFERENCES)
        for name, what in (
            ("bleu_1", "BLEU-1, percent,"),
            ("bleu_4", "BLEU-4, percent,"),
            ("rouge_1", "ROUGE-1 F, percent,"),
            ("rouge_2", "ROUGE-2 F, percent,"),
            ("rouge_l", "ROUGE-L F, percent,"),
        )
        for column in (
            *_pair(f"{name}_{{}}", what, f"evaluation.texts.{{}}.{name}"),
            *(
                Column(
                    f"{name}_{control}",
                    f"{what} of the control: {meaning}",
                    f"evaluation.texts.after.{control}.{name}",
                )
                for control, meaning in (
                    ("shuffled", "texts after training against references of another item"),
                    ("constant", "the best sentence for everybody"),
                )
            ),
        )
    ),
    *(
        column._replace(empty=NO_PAIR)
        for name, what in (
            ("fmr", "Feature matching ratio"),
            ("fcr", "Feature coverage ratio"),
            ("div", "Feature diversity, features two texts share,"),
            ("distinct_1", "Distinct words over words"),
            ("distinct_2", "Distinct bigrams over bigrams"),
        )
        for column in _pair(f"{name}_{{}}", what, f"evaluation.texts.{{}}.{name}")
    ),
    *_pair("toxicity_mean_{}", "Mean toxicity", "audit.toxicity.{}.mean.mean"),
    *_pair("toxicity_p95_{}", "95th percentile of toxicity", "audit.toxicity.{}.p95.mean"),
    *_pair("gini_{}", "Gini of item exposure", "audit.popularity.{}.gini"),
    *_interval(
        "gini_change",
        "Change of the Gini of item exposure",
        *(f"audit.popularity.change.gini.{end}" for end in ("mean", "low", "high")),
    ),
    *_interval(
        "group_gap",
        "Largest gap of NDCG@10 between user groups after training",
        *(f"audit.fairness.gap.{end}" for end in ("mean", "low", "high")),
        empty=NO_GROUPS,
    ),
    *_interval(
        "grounding",
        "Share of texts that name their item, less that share for other items",
        *(f"audit.grounding.paired_minus_shuffled.{end}" for end in ("mean", "low", "high")),
    ),
    *_interval(
        "injection_excess",
        "Attack success after training, less that of a benign twin",
        *(f"audit.injection.excess.{end}" for end in ("mean", "low", "high")),
    ),
    Column(
        "leak_rate",
        "Share of sampled texts after training with a user's id or name",
        "audit.privacy.samples.leak_rate",
    ),
    Column(
        "leak_rate_upper",
        "Clopper-Pearson 95% upper bound of leak_rate",
        "audit.privacy.samples.leak_rate_upper",
    ),
    Column(
        "copied_share",
        "Share of texts after training with a copied n-gram",
        "audit.privacy.after.copied_share",
    ),
    Column("provenance", "Digest of adapter, evaluation, certificate and audit", provenance, str),
]
DERIVED = [
    Column(
        "ndcg_unchanged", "Whether the interval of ndcg_change lies within the margin", "", bool
    ),
    Column("notes", "Why cells of this row are empty", "", str),
]
TIMINGS = [
    Column("seconds", "Wall-clock seconds of training", "summary.seconds"),
    Column("peak_memory_mb", "Largest memory of training, in MB", "summary.peak_memory_mb"),
]
# What a rerun may change comes last, so that all before it can be compared byte by byte.
ALL_COLUMNS = [*COLUMNS, *DERIVED, *TIMINGS]


def row(run: Run, settings: TableSettings) -> Row:
    """One row of the table.

    Raises:
        UserError: a value is missing, or not finite without a reason.
    """
    values = {column.name: _value(run, column) for column in (*COLUMNS, *TIMINGS)}
    margin = settings.ndcg_margin
    values["ndcg_unchanged"] = (
        -margin <= values["ndcg_change_low"] and values["ndcg_change_high"] <= margin
    )
    reasons: dict[str, list[str]] = {}
    for column in COLUMNS:
        if values[column.name] is None:
            reason = column.why(run) if column.why else column.empty
            reasons.setdefault(reason, []).append(column.name)
    values["notes"] = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    return {column.name: values[column.name] for column in ALL_COLUMNS}


def as_text(value: Any) -> str:
    """Text of a CSV cell: six significant digits, empty for None, lower-case booleans.

    >>> [as_text(value) for value in (0.1234567, True, None, 42, "books", -0.0)]
    ['0.123457', 'true', '', '42', 'books', '0']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value + 0.0:.6g}"
    return str(value)


def _value(run: Run, column: Column) -> Any:
    if callable(column.source):
        return column.source(run)
    return _look_up(run, column.source, column.kind, column.empty is not None)


def _look_up(run: Run, source: str, kind: type, can_be_empty: bool) -> Any:
    """The value at `source`: document and keys, joined by dots."""
    document, *keys = source.split(".")
    value = getattr(run, document)
    where = f"{run.folder}: {FILES[document]}"
    for key in keys:
        if value is None and can_be_empty:
            return None
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{where} lacks {'.'.join(keys)!r}; make it again")
        value = value[key]
    empty = value is None or (isinstance(value, float) and not math.isfinite(value))
    if empty and can_be_empty:
        return None
    # JSON does not tell 3 from 3.0, and Python takes True for 1.
    accepted = (int, float) if kind is float else kind
    if empty or not isinstance(value, accepted) or isinstance(value, bool) > (kind is bool):
        raise UserError(
            f"{where}: {'.'.join(keys)!r} is {value!r}, not a "
            f"{'finite number' if kind is float else kind.__name__}; make it again"
        )
    return kind(value)
