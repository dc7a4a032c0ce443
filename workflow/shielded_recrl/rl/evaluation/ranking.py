"""The served ranking before and after training, user by user.

In: histories, ranker states, read-out, the LM at each snapshot. Out: served scores, NDCG@10 and HR@10
of held-out users, the rows of rankings.parquet and of users.parquet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import hidden_size
from shielded_recrl.ranker.metrics import RankingMetrics, ranking_metrics, top_k
from shielded_recrl.rl.settings import EvaluationSettings
from shielded_recrl.shield.certificate import Cohort, cohort_scores
from shielded_recrl.shield.serving import (
    RankerStates,
    RankingHead,
    ReadOut,
    Serving,
    served_scores,
    served_states,
)
from shielded_recrl.statistics import paired_bootstrap

# Users whose prefixes are read at a time.
BLOCK = 64


class Served:
    """The served scores of evaluated users.

    They are worked out block by block, so that those of a user are the same bits whichever others
    are asked for.
    """

    def __init__(self, serving: Serving, states: RankerStates, readout: ReadOut):
        """
        Args:
            serving: histories and roles.
            states: what the ranker exports.
            readout: W and gamma.
        """
        self.serving, self.states, self.readout = serving, states, readout
        self.people = np.concatenate([serving.roles.protected, serving.roles.heldout])
        self._prefixes: dict[int, list[tuple[int, ...]]] = {}

    def rows(self, heldout: np.ndarray) -> np.ndarray:
        """Where held-out users stand among all people."""
        roles = self.serving.roles
        return len(roles.protected) + np.searchsorted(roles.heldout, heldout)

    def __call__(self, model: torch.nn.Module, rows: np.ndarray | None = None) -> np.ndarray:
        """Scores [U, I + 1], float64, with the adapter as it is: on or off.

        Args:
            model: the LM.
            rows: of `people`, ascending; all of them by default.
        """
        rows = np.arange(len(self.people)) if rows is None else rows
        return np.concatenate(
            [
                self._block(model, block)[rows[rows // BLOCK == block] % BLOCK]
                for block in np.unique(rows // BLOCK).tolist()
            ]
        )

    def _block(self, model: torch.nn.Module, block: int) -> np.ndarray:
        users = self.people[block * BLOCK : (block + 1) * BLOCK]
        if block not in self._prefixes:
            self._prefixes[block] = [self.serving.prefix(user) for user in users]
        hidden = served_states(model, self._prefixes[block]).numpy()
        return served_scores(self.states.test_users[users], hidden, self.states.items, self.readout)


def check_readout(readout: ReadOut, model: torch.nn.Module, path: Path) -> None:
    """Refuse a read-out that was fitted to another base LM.

    Args:
        readout: W and gamma.
        model: the base.
        path: of the read-out, for the error.

    Raises:
        UserError: it reads hidden states of another width.
    """
    if (width := readout.weight.shape[1]) != hidden_size(model):
        raise UserError(
            f"{path}: made for hidden states of width {width}, but the base LM has "
            f"{hidden_size(model)}; fit the read-out again with this base"
        )


def people_metrics(
    serving: Serving, people: np.ndarray, scores: dict[int, np.ndarray]
) -> dict[int, RankingMetrics]:
    """NDCG, HR and MRR at 10 of each user at each step.

    Args:
        serving: what the users have seen, and what they are to find.
        people: users of the rows of the scores.
        scores: served scores [U, I + 1] by step.
    """
    relevant = serving.splits.relevant_mask("test", people)
    seen = serving.splits.seen_mask("test", people)
    return {step: ranking_metrics(matrix, relevant, seen) for step, matrix in scores.items()}


def ranking_report(
    metrics: dict[int, RankingMetrics],
    alone: RankingMetrics,
    heldout: np.ndarray,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, Any]:
    """SASRec alone and the served ranking on held-out users, before and after training.

    Protected users are held still by construction: the ranking is judged on the others.

    Args:
        metrics: of each user at each step.
        alone: of each user, ranked without the LM.
        heldout: boolean [U], which users are held out.
        settings: resamples.
        seed: of the bootstrap.
    """
    first, last = min(metrics), max(metrics)
    change = (metrics[last].ndcg - metrics[first].ndcg)[heldout]
    return {
        "ranker": ndcg_hr(alone, heldout),
        "served_before": ndcg_hr(metrics[first], heldout),
        "served_after": ndcg_hr(metrics[last], heldout),
        "ndcg_change": paired_bootstrap(change, settings.bootstrap, seed)._asdict(),
    }


def ranker_scores(states: RankerStates, people: np.ndarray) -> np.ndarray:
    """Scores [U, I + 1] of the ranker alone: the read-out is nothing."""
    nothing = ReadOut(np.zeros((states.items.shape[1], 1)), 0.0)
    hidden = np.zeros((len(people), 1))
    return served_scores(states.test_users[people], hidden, states.items, nothing)


def lm_report(model: torch.nn.Module, head: RankingHead, heldout: Cohort) -> dict[str, float]:
    """NDCG@10 and HR@10 of held-out users when the LM ranks without the ranker."""
    scores = cohort_scores(model, replace(head, gamma=1.0), replace(heldout, offset=None))
    matrices = (scores, heldout.relevant, heldout.seen)
    return ndcg_hr(ranking_metrics(*(np.pad(matrix, ((0, 0), (1, 0))) for matrix in matrices)))


def cohort(serving: Serving, states: RankerStates, users: np.ndarray) -> Cohort:
    """Users as the certificate wants them: what they are served, and what they are to find."""
    return Cohort(
        prompts=[serving.prefix(user) for user in users],
        offset=states.test_users[users].astype(np.float64) @ states.items[1:].T.astype(np.float64),
        seen=serving.splits.seen_mask("test", users)[:, 1:],
        relevant=serving.splits.relevant_mask("test", users)[:, 1:],
    )


def rankings(serving: Serving, people: np.ndarray, scores: dict[int, np.ndarray]) -> pl.DataFrame:
    """Served top 10 of every evaluated user at each step."""
    seen = serving.splits.seen_mask("test", people)
    roles = roles_of(serving, people)
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


def users_table(
    serving: Serving, people: np.ndarray, metrics: dict[int, RankingMetrics]
) -> pl.DataFrame:
    """NDCG@10 and HR@10 of every evaluated user before and after training."""
    columns = {
        f"{name}_{when}": pl.Series(getattr(metrics[step], name), dtype=pl.Float64)
        for name in ("ndcg", "hr")
        for when, step in (("before", min(metrics)), ("after", max(metrics)))
    }
    users = pl.Series(people, dtype=pl.Int32)
    return pl.DataFrame({"user": users, "role": roles_of(serving, people), **columns})


def roles_of(serving: Serving, people: np.ndarray) -> np.ndarray:
    """`protected` or `heldout` of each user."""
    return np.where(np.isin(people, serving.roles.protected), "protected", "heldout")


def ndcg_hr(metrics: RankingMetrics, rows: Any = ...) -> dict[str, float]:
    """Mean NDCG@10 and HR@10 over the chosen users."""
    return {
        "ndcg@10": float(metrics.ndcg[rows].mean()),
        "hr@10": float(metrics.hr[rows].mean()),
    }
