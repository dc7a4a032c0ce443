"""What a critic learned, and the gate it has to pass.

In: judged responses of dialogues that it was not trained on, and its scores of them. Out: for each
head, by how much its squared error is below that of a constant; for each fault, how often the
critic finds the person's response better than the same with the fault. Intervals are 95% bootstrap
ones over dialogues. The gate wants each interval of the former above 0, of the latter above 1/2.

The constant is the mean score in train. Empty responses are left out of it and of the errors:
whoever knows that they have 0 would beat the mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from shielded_recrl.dialogue.judged import CORRUPTED, GOLD
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.errors import UserError
from shielded_recrl.statistics import paired_bootstrap


def report_of_critic(
    table: pl.DataFrame,
    scores: np.ndarray,
    predicted: np.ndarray,
    constant: np.ndarray,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Errors by head and orders by fault.

    Args:
        table: judged responses [n].
        scores: [n, 5] of the judges.
        predicted: [n, 5] of the critic.
        constant: [5] the means of the scores of train's responses, empty ones left out.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: a head has the same score everywhere.
    """
    dialogues, kinds = table["dialogue"].to_numpy(), table["kind"].to_numpy()
    said = table["text"].str.strip_chars().str.len_chars().to_numpy() > 0
    plain = said & ~np.array([kind.startswith(CORRUPTED) for kind in kinds])
    heads = {}
    for place, head in enumerate(HEADS):
        truth = scores[:, place]
        if np.ptp(truth[said]) < 1e-6:
            raise UserError(
                f"critic: the judges give {head} {truth[said][0]:.3g} to every held-out response, "
                "so nothing tells whether it was learned; ask other judges"
            )
        error = (predicted[:, place] - truth) ** 2
        of_mean = (constant[place] - truth) ** 2
        heads[head] = {
            "mse": float(error[said].mean()),
            "mse_mean": float(of_mean[said].mean()),
            "gain": _mean(of_mean - error, said, dialogues, resamples, seed),
            "gain_gold_and_sampled": _mean(of_mean - error, plain, dialogues, resamples, seed),
        }
    faults = [kind for kind in dict.fromkeys(kinds) if kind.startswith(CORRUPTED)]
    return {
        "heads": heads,
        "corruptions": {
            kind.removeprefix(CORRUPTED): {
                "share": share,
                "pairs": pairs,
            }
            for kind in faults
            for share, pairs in [above(table, predicted[:, -1], kind, resamples, seed)]
        },
    }


def above(
    table: pl.DataFrame, values: np.ndarray, kind: str, resamples: int, seed: int
) -> tuple[dict[str, float], int]:
    """How often a person's response has more than that of a kind to the same turn, ties by half.

    Returns:
        The share with its interval, and the number of pairs.
    """
    keyed = table.select("dialogue", "turn", "kind").with_columns(value=pl.Series(values))
    gold = keyed.filter(pl.col("kind") == GOLD)
    pairs = keyed.filter(pl.col("kind") == kind).join(gold, on=["dialogue", "turn"])
    more = (pairs["value_right"] - pairs["value"]).to_numpy()
    interval = paired_bootstrap(
        (np.sign(more) + 1) / 2, resamples, seed, pairs["dialogue"].to_numpy()
    )
    return interval._asdict(), len(pairs)


def gate(report: dict[str, Any]) -> None:
    """Stop a run whose critic would reward by chance.

    Raises:
        UserError: a head is not better than the mean, or a fault not below the person's response.
    """
    for head, row in report["heads"].items():
        gain = row["gain"]
        if not gain["low"] > 0:
            raise UserError(
                f"critic: {head} is no better than the mean on held-out dialogues (squared error "
                f"{row['mse']:.4f}, the mean's {row['mse_mean']:.4f}; gain {_words(gain)}); judge "
                "more turns, train longer or ask other judges"
            )
    for fault, row in report["corruptions"].items():
        if not row["share"]["low"] > 0.5:
            raise UserError(
                f"critic: it finds people's responses better than those with the fault `{fault}` "
                f"in a share {_words(row['share'])} of {row['pairs']} held-out pairs, which may be "
                "chance; judge more turns, train longer or ask other judges"
            )


def _mean(
    values: np.ndarray, where: np.ndarray, dialogues: np.ndarray, resamples: int, seed: int
) -> dict[str, float]:
    return paired_bootstrap(values[where], resamples, seed, dialogues[where])._asdict()


def _words(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"
