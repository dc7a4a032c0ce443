"""The ranker's card: what was trained on what, how it learned, and whether it earns its place.

In: stats.json of the data stage, the splits, the checkpoint, train.jsonl and metrics.json.
Out: `card.md` for a reader without this project at hand, and `curve.svg`, which it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shielded_recrl.files import atomic
from shielded_recrl.markdown import table
from shielded_recrl.ranker.baselines import EASE_ITEMS
from shielded_recrl.ranker.data import Splits
from shielded_recrl.ranker.evaluation import CUTOFFS
from shielded_recrl.ranker.sasrec import Checkpoint

NAMES = {"ranker": "SASRec", "popularity": "popularity", "item_knn": "item-kNN", "ease": "EASE"}
SPLIT_KINDS = {
    "per_user": "the last items of every user",
    "leave_one_out": "the last item of every user, and the one before it for validation",
    "global_time": "the newest interactions of all users",
}


def card(
    stats: dict[str, Any],
    splits: Splits,
    checkpoint: Checkpoint,
    history: Sequence[dict[str, Any]],
    metrics: dict[str, Any],
) -> str:
    """The card in Markdown.

    Args:
        stats: stats.json of the dataset.
        splits: the dataset.
        checkpoint: of the model.
        history: rows of train.jsonl.
        metrics: metrics.json.
    """
    baselines = [name for name in NAMES if name in metrics]
    sections = [
        f"# SASRec on {stats['dataset']}",
        verdict(stats, metrics),
        *_caveats(stats),
        "## Dataset",
        _dataset(stats, splits),
        "## Recipe",
        _recipe(checkpoint, history),
        "## Training",
        "![NDCG@10 on the valid split and training loss, by epoch](curve.svg)",
        _training(checkpoint, history),
        "## Results on the test split",
        _results(metrics, baselines, "test"),
        "Means over users, with 95% bootstrap intervals over users. The whole catalogue competes "
        "but what a user had before; ties count against a model. Coverage@10 is the share of the "
        "catalogue in at least one user's top 10. "
        + " ".join(
            f"{NAMES[name]}: {key} {value:g}, chosen on the valid split."
            for name in baselines
            for key, value in metrics[name].items()
            if key not in ("valid", "test")
        ),
        "## SASRec minus each baseline, NDCG@10 of the same users",
        _table(
            ["baseline", "valid", "test"],
            (
                [NAMES[name], *(_signed(metrics[name][s]["ranker_above"]) for s in _SPLITS)]
                for name in baselines
            ),
        ),
        "## SASRec at other list lengths",
        _table(
            ["k", *(f"{metric} {split}" for split in _SPLITS for metric in _METRICS)],
            (
                [k, *(f"{metrics[s][f'{m.lower()}@{k}']:.4f}" for s in _SPLITS for m in _METRICS)]
                for k in CUTOFFS
            ),
        ),
        "## What these figures do not promise",
        "\n".join(f"- {line}" for line in _limits(stats, splits, metrics)),
    ]
    return "\n\n".join(sections) + "\n"


def verdict(stats: dict[str, Any], metrics: dict[str, Any]) -> str:
    """One sentence: whether SASRec is above the best baseline, by the paired interval on test."""
    best = metrics["best_baseline"]
    above = metrics[best]["test"]["ranker_above"]
    where = f"the {'synthetic ' if stats['synthetic'] else ''}dataset {stats['dataset']}"
    if above["low"] > 0:
        claim = f"SASRec earns its place on {where}: its"
    elif above["high"] < 0:
        claim = f"SASRec does not earn its place on {where}: its"
    else:
        claim = f"It is not shown that SASRec earns its place on {where}: its"
    direction = "above" if above["mean"] >= 0 else "below"
    low, high = above["low"], above["high"]
    return (
        f"**{claim} NDCG@10 on the test split is {abs(above['mean']):.4f} {direction} that of "
        f"{NAMES[best]}, the best baseline on the valid split (difference {low:+.4f} to "
        f"{high:+.4f} with 95% confidence, {metrics['test']['users']} users).**"
    )


def draw_curve(path: Path, history: Sequence[dict[str, Any]], best_epoch: int) -> None:
    """Write the validation curve as SVG; equal numbers give equal bytes.

    Args:
        path: file to write.
        history: rows of train.jsonl; `ndcg@10` is None where an epoch was not validated.
        best_epoch: the epoch whose weights were kept.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    validated = [row for row in history if row["ndcg@10"] is not None]
    # Text stays text, and ids come from the salt instead of a random number.
    style = {"svg.hashsalt": "ranker", "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context(style), atomic(path) as partial:
        figure = Figure(figsize=(6, 3), layout="constrained")
        quality = figure.subplots()
        loss = quality.twinx()
        loss.plot(
            [row["epoch"] for row in history],
            [row["loss"] for row in history],
            color="#999999",
            linestyle="--",
        )
        quality.plot(
            [row["epoch"] for row in validated],
            [row["ndcg@10"] for row in validated],
            color="#0072B2",
            marker="o",
            markersize=3,
        )
        quality.axvline(best_epoch, color="#D55E00", linewidth=1)
        quality.set(xlabel="epoch (line: weights kept)", ylabel="NDCG@10, valid split")
        quality.xaxis.set_major_locator(MaxNLocator(integer=True))
        quality.yaxis.label.set_color("#0072B2")
        loss.set_ylabel("training loss (dashed)")
        figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": None})


_SPLITS = ("valid", "test")
_METRICS = ("NDCG", "HR", "MRR")


def _dataset(stats: dict[str, Any], splits: Splits) -> str:
    counts = {name: len(getattr(splits, name).items) for name in ("train", "valid", "test")}
    total = sum(counts.values())
    kind = stats["settings"]["split"]
    return _table(
        ["", ""],
        [
            ["name", stats["dataset"]],
            ["synthetic", "yes: made by this project" if stats["synthetic"] else "no"],
            ["ordered in time", "yes" if stats["sequential"] else "no"],
            ["rows read", f"{stats['rows_read']:,}"],
            ["interactions kept", f"{total:,}"],
            ["users", f"{splits.n_users:,}"],
            ["items", f"{splits.n_items:,}"],
            ["density", f"{total / (splits.n_users * splits.n_items):.3%}"],
            ["split", f"`{kind}`: tested on {SPLIT_KINDS[kind]}"],
            ["train / valid / test", " / ".join(f"{count:,}" for count in counts.values())],
        ],
    )


def _recipe(checkpoint: Checkpoint, history: Sequence[dict[str, Any]]) -> str:
    rows = [[f"`{key}`", f"{value}"] for key, value in checkpoint.settings.model_dump().items()]
    return _table(
        ["setting", "value"],
        [
            *rows,
            ["seed", checkpoint.seed],
            ["epochs run", len(history)],
            ["epoch kept", checkpoint.best_epoch],
            ["sha256 of train.parquet", f"`{checkpoint.train_sha256}`"],
        ],
    )


def _training(checkpoint: Checkpoint, history: Sequence[dict[str, Any]]) -> str:
    best = history[checkpoint.best_epoch - 1]
    last = next(row for row in reversed(history) if row["ndcg@10"] is not None)
    return (
        f"The weights of epoch {checkpoint.best_epoch} were kept: NDCG@10 {best['ndcg@10']:.4f} on "
        f"the valid split at a training loss of {best['loss']:.3f}. Training ended after epoch "
        f"{last['epoch']} at {last['ndcg@10']:.4f}."
    )


def _results(metrics: dict[str, Any], baselines: Iterable[str], split: str) -> str:
    entries = {
        "ranker": metrics[split],
        **{name: metrics[name][split] for name in baselines},
    }
    names = ("ndcg@10", "hr@10", "mrr@10")
    return _table(
        ["model", "NDCG@10", "HR@10", "MRR@10", "coverage@10"],
        (
            [
                NAMES[model],
                *(_with_interval(entry[name], entry["intervals"][name]) for name in names),
                f"{entry['coverage@10']:.3f}",
            ]
            for model, entry in entries.items()
        ),
    )


def _caveats(stats: dict[str, Any]) -> list[str]:
    if stats["sequential"]:
        return []
    return [
        "**No order.** The source does not tell when its interactions happened: the order within "
        "each user, and with it the split, was drawn at random. SASRec reads that order as if it "
        "were one. The figures say how well it completes a user's set of items, not what comes "
        "next, and are not comparable with published sequential results."
    ]


def _limits(stats: dict[str, Any], splits: Splits, metrics: dict[str, Any]) -> list[str]:
    users = metrics["test"]["users"]
    lines = [
        "They tell which held-out items a model lists, not whether a user shown the list would "
        "choose from it or be pleased: what users took depends on what they were shown then.",
        f"They are means over {users:,} of {splits.n_users:,} users, those with a history and "
        "something new to find; newcomers without a history get no ranking.",
        "The intervals are over users, for this one trained model: another seed, period or "
        "dataset may differ by more.",
        "Items a user had before are removed, so taking the same item again is not measured.",
        "Baselines read no order and have few settings; a model that none of them stands for "
        "may be better than all.",
    ]
    if "ease" not in metrics:
        lines.append(
            f"EASE, often the strongest of such baselines, was not fitted: {splits.n_items:,} items "
            f"are more than its {EASE_ITEMS:,}. The verdict does not cover it."
        )
    if stats["synthetic"]:
        lines.append("The dataset is synthetic: nothing follows for real readers or players.")
    if stats["sequential"] and stats["settings"]["split"] != "global_time":
        lines.append(
            "The split cuts each user's history at another moment, so training has seen what "
            "others did after it; a served system has not."
        )
    return lines


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    return "\n".join(table(head, rows))


def _with_interval(value: float, interval: dict[str, float]) -> str:
    return f"{value:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def _signed(interval: dict[str, float]) -> str:
    return f"{interval['mean']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})"
