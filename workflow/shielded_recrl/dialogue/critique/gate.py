"""What a critic learned, and the gate it has to pass.

In: judged responses of dialogues that it was not trained on, and its scores of them. Out: for each
head, by how much its squared error on gold and sampled responses is below that of a constant; for each
fault, how often the critic finds the person's response better than the same with the fault. Intervals
are 95% bootstrap ones over dialogues. The gate wants each interval of the former above 0, of the latter
above 1/2.

The constant is the mean score of train's gold and sampled responses. Corrupted and empty ones are left out of it
and of the errors: whoever knows broken from whole, and nothing else, would beat the mean of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from shielded_recrl.dialogue.critique.judged import CORRUPTED, EMPTY, GOLD
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
        constant: [5] the mean scores of train's gold and sampled responses.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: a head has the same score everywhere, or a fault has no pairs.
    """
    dialogues, plain = table["dialogue"].to_numpy(), is_plain(table)
    heads = {}
    for place, head in enumerate(HEADS):
        truth = scores[:, place]
        if np.ptp(truth[plain]) < 1e-6:
            raise UserError(
                f"critic: the judges give {head} {truth[plain][0]:.3g} to every held-out response, "
                "so nothing tells whether it was learned; ask other judges"
            )
        error = (predicted[:, place] - truth) ** 2
        of_mean = (constant[place] - truth) ** 2
        gain = paired_bootstrap((of_mean - error)[plain], resamples, seed, dialogues[plain])
        heads[head] = {
            "mse": float(error[plain].mean()),
            "mse_mean": float(of_mean[plain].mean()),
            "gain": gain._asdict(),
        }
    # An empty response is worth 0 to every critic, so nothing is to be learned of it.
    faults = [
        kind
        for kind in dict.fromkeys(table["kind"])
        if kind.startswith(CORRUPTED) and kind != EMPTY
    ]
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


def is_plain(table: pl.DataFrame) -> np.ndarray:
    """Boolean [n]: which responses are gold or sampled, and say something."""
    corrupted = table["kind"].str.starts_with(CORRUPTED)
    said = table["text"].str.strip_chars().str.len_chars() > 0
    return (~corrupted & said).to_numpy()


def above(
    table: pl.DataFrame, values: np.ndarray, kind: str, resamples: int, seed: int
) -> tuple[dict[str, float], int]:
    """How often a person's response has more than that of a kind to the same turn, ties by half.

    Returns:
        The share with its interval, and the number of pairs.

    Raises:
        UserError: there are no pairs of two dialogues.
    """
    keyed = table.select("dialogue", "turn", "kind").with_columns(value=pl.Series(values))
    gold = keyed.filter(pl.col("kind") == GOLD)
    pairs = keyed.filter(pl.col("kind") == kind).join(gold, on=["dialogue", "turn"])
    if pairs["dialogue"].n_unique() < 2:
        raise UserError(
            f"critic: {len(pairs)} held-out pairs of a person's response and one that is {kind}, of "
            "fewer than two dialogues; judge more turns"
        )
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


def _words(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"
