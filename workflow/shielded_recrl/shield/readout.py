"""Fit the read-out W on train users with the base LM, then choose gamma on the validation split.

In: base LM or what shards of `embed` made with it, SASRec states, splits. Out: readout.safetensors
(W [d_r, d], gamma) and readout.json with NDCG@10 of SASRec alone, the LM alone and the served
ranking, on the validation split (which chose gamma) and on the test split of held-out users (which
chose nothing).

W minimises the cross-entropy of the next item under softmax_i <W h(u), e(i)>, over the last
positions of train users' train histories, with h from the base LM (no adapter) and e frozen.

gamma is the ratio of the two weights of a stacking (Wolpert 1992; Breiman 1996): a and b >= 0
maximise the likelihood of the validation items of users who are not held out,

    P(i | u) = softmax_i ( a <s(u), e(i)> + b <W h(u), e(i)> )  over unseen items,

and gamma = b / a. The temperature 1 / a changes no ranking, but has to be free: SASRec is surer of
itself than it should be of what it was not trained on. The likelihood speaks of every item's
probability, where NDCG@10 only counts who crosses a few ranks: it chooses with far less noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from shielded_recrl.files import sealed, write_json
from shielded_recrl.ranker.evaluation import BLOCK, evaluate_split
from shielded_recrl.settings import section
from shielded_recrl.shield.embed import Needs, StateInputs, embed, joined_states
from shielded_recrl.shield.parts import load_parts
from shielded_recrl.shield.serving import RankerStates, ReadOut, Serving, load_states, served_scores
from shielded_recrl.shield.settings import EmbedSettings, RankingSettings
from shielded_recrl.statistics import paired_bootstrap


def main(
    *,
    inputs: Annotated[StateInputs, tyro.conf.arg(name="")],
    ranker: Path,
    out: Path,
    settings: Annotated[RankingSettings, tyro.conf.arg(name="")],
    parts: tuple[Path, ...] = (),
) -> None:
    """Fit the read-out and choose gamma.

    Args:
        inputs: what the states are made from.
        ranker: states.safetensors of the ranker.
        out: readout.safetensors to write; readout.json is written beside it.
        settings: roles and the fit.
        parts: what `shield embed` wrote, all shards; without any the LM runs here.
    """
    from safetensors.numpy import save_file

    from shielded_recrl.explainer.base import default_device, load_base

    seed = inputs.seed
    serving = inputs.serving(settings, seed)
    states = load_states(ranker)
    needs = Needs.of(serving, settings, seed)
    if parts:
        owner = inputs.digest(section(settings, EmbedSettings))
        hidden = joined_states(load_parts(parts, owner))
    else:
        model = load_base(inputs.base, inputs.precision, default_device())
        hidden = embed(model, needs.prefixes())
    weight = fit_readout(
        hidden["examples"],
        torch.tensor(needs.targets),
        torch.from_numpy(states.items),
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        seed=seed,
    ).numpy()

    validation = Cohort(serving, states, "valid", needs.validation, hidden["validation"].numpy())
    heldout = Cohort(serving, states, "test", serving.roles.heldout, hidden["heldout"].numpy())
    gamma = settings.gamma
    if gamma is None:
        gamma = stacked_gamma(lambda: validation.choices(weight), max(settings.gammas))
    readout = ReadOut(weight, gamma)
    curve = {
        value: float(validation.ndcg(ReadOut(weight, value)).mean())
        for value in sorted({0.0, *settings.gammas, gamma})
    }
    chosen = validation.compare(readout)

    with sealed(out) as partial:
        save_file({"weight": weight, "gamma": np.array(gamma)}, partial)
    write_json(
        out.with_suffix(".json"),
        {
            "gamma": gamma,
            "chosen_on": "validation" if settings.gamma is None else "config",
            "examples": len(needs.targets),
            **chosen,
            "served": [{"gamma": g, "ndcg@10": value} for g, value in curve.items()],
            "heldout": heldout.compare(readout),
        },
    )
    print(
        f"{out}: gamma {gamma:g}; validation NDCG@10 SASRec {chosen['sasrec_alone']:.4f}, "
        f"LM alone {chosen['lm_alone']:.4f}, served {curve[gamma]:.4f}"
    )


def fit_readout(
    hidden: Tensor,
    targets: Tensor,
    items: Tensor,
    *,
    weight_decay: float,
    epochs: int,
    seed: int,
    learning_rate: float = 0.03,
    batch_size: int = 256,
) -> Tensor:
    """W [d_r, d] by Adam on the full-catalogue cross-entropy with an L2 penalty.

    W = V P, and V is what is fitted and penalised: P makes the states standardised ones and a
    constant, see `standardiser`. The penalty is weight_decay ||V||^2 beside the summed
    cross-entropy, the log density of a Gaussian prior; the constant's column is free.

    Args:
        hidden: h [n, d].
        targets: next items [n], from 1.
        items: e [I + 1, d_r]; row 0 is padding and no candidate.
        weight_decay: weight of the penalty.
        epochs: passes over the examples.
        seed: seed of the order of examples.
        learning_rate: Adam learning rate at the start; it falls linearly to 0.
        batch_size: examples in a step.
    """
    transform = standardiser(hidden)
    inputs = hidden @ transform.T
    weight = torch.zeros(items.shape[1], inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=learning_rate)
    steps = epochs * -(-len(hidden) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(hidden), generator=generator).split(batch_size):
            logits = inputs[batch] @ weight.T @ items[1:].T
            penalty = weight_decay * weight[:, :-1].square().sum() / len(hidden)
            loss = F.cross_entropy(logits, targets[batch] - 1) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return weight.detach() @ transform


def standardiser(hidden: Tensor) -> Tensor:
    """P [d + 1, d]: P h is h of zero mean and unit deviation, and last a constant of about 1.

    The states at one template token have most of their length in common. That is a constant
    a'h of about 1 (least squares), so that (h - mean a'h) / deviation is linear in h: score(u, i)
    needs no bias term, and centring costs nothing in the read-out.

    Args:
        hidden: h [n, d].
    """
    states = hidden.double()
    mean, deviation = states.mean(dim=0), states.std(dim=0, correction=0)
    constant = torch.linalg.lstsq(states, states.new_ones(len(states), 1)).solution.T
    centred = torch.eye(len(mean), dtype=states.dtype) - mean[:, None] * constant
    # A direction that hardly varies is not blown up to a feature of its own.
    scale = deviation.clamp(min=1e-3 * deviation.max().item()).clamp(min=1e-12)
    return torch.cat([centred / scale[:, None], constant]).to(hidden.dtype)


class Choices(NamedTuple):
    """Scores of the catalogue for a block of users, and what these users took from it."""

    sasrec: Tensor  # <s, e>, float64 [B, I + 1]
    lm: Tensor  # <W h, e>, float64 [B, I + 1]
    excluded: Tensor  # padding and what a user had already, bool [B, I + 1]
    rows: Tensor  # row of each item taken [n]
    items: Tensor  # item taken [n], not excluded


def stacked_gamma(blocks: Callable[[], Iterator[Choices]], largest: float) -> float:
    """gamma = b / a of the weights of most likelihood, three digits, within 0 and `largest`.

    The log likelihood is concave in (a, b). Where b is negative the LM adds nothing: 0.

    Args:
        blocks: gives the validation users' scores and choices, block by block, as often as asked.
        largest: bound of gamma; also the answer where SASRec adds nothing to the LM.
    """
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")
    count = sum(len(block.items) for block in blocks())

    def loss() -> Tensor:
        solver.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for block in blocks():
            logits = weights[0] * block.sasrec + weights[1] * block.lm
            logits = logits.masked_fill(block.excluded, -torch.inf)
            taken = logits[block.rows, block.items].sum()
            part = (logits.logsumexp(dim=1)[block.rows].sum() - taken) / count
            part.backward()
            total += part.detach()
        return total

    solver.step(loss)
    a, b = weights.tolist()
    if b <= 0:
        return 0.0
    return float(f"{min(b / a, largest) if a > 0 else largest:.3g}")


class Cohort(NamedTuple):
    """Users before a split: SASRec states, LM states, and how the served scores rank for them."""

    serving: Serving
    states: RankerStates
    split: str
    users: np.ndarray  # ids, ascending [U]
    hidden: np.ndarray  # h [U, d]

    def choices(self, weight: np.ndarray) -> Iterator[Choices]:
        """Scores and choices under a read-out W [d_r, d], a block of users at a time."""
        splits, items = self.serving.splits, self.states.items
        size = max(1, BLOCK // len(items))
        for start in range(0, len(self.users), size):
            some = slice(start, start + size)
            users, hidden = self.users[some], self.hidden[some]
            excluded = splits.seen_mask(self.split, users)
            excluded[:, 0] = True
            rows, taken = np.nonzero(splits.relevant_mask(self.split, users))
            sasrec = served_scores(self._sasrec(users), hidden, items, ReadOut(weight, 0.0))
            lm = served_scores(0 * self._sasrec(users), hidden, items, ReadOut(weight, 1.0))
            yield Choices(*map(torch.from_numpy, (sasrec, lm, excluded, rows, taken)))

    def ndcg(self, readout: ReadOut, sasrec: float = 1.0) -> np.ndarray:
        """NDCG@10 of each user [U]; `sasrec` weighs the SASRec states, 0 leaves the LM alone."""

        def score(users: np.ndarray) -> np.ndarray:
            hidden = self.hidden[np.searchsorted(self.users, users)]
            return served_scores(sasrec * self._sasrec(users), hidden, self.states.items, readout)

        return evaluate_split(self.serving.splits, self.split, score, self.users).ndcg

    def compare(self, readout: ReadOut) -> dict[str, Any]:
        """NDCG@10 of SASRec, the LM and both, and what the LM adds to SASRec with its interval."""
        alone, served = self.ndcg(ReadOut(readout.weight, 0.0)), self.ndcg(readout)
        return {
            "users": len(self.users),
            "sasrec_alone": float(alone.mean()),
            "lm_alone": float(self.ndcg(ReadOut(readout.weight, 1.0), sasrec=0.0).mean()),
            "served_ndcg@10": float(served.mean()),
            "gain": paired_bootstrap(served - alone)._asdict(),
        }

    def _sasrec(self, users: np.ndarray) -> np.ndarray:
        return getattr(self.states, f"{self.split}_users")[users]
