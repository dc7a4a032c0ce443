"""Fit the read-out W on train users with the base LM, then choose gamma on the validation split.

In: base LM, SASRec states, splits. Out: readout.safetensors (W [d_r, d], gamma) and readout.json
with validation NDCG@10 of SASRec alone, the LM alone, and the served ranking at each gamma.

Held-out users take part in neither. W minimises the cross-entropy of the next item under softmax_i <W h(u), e(i)>, over the last
positions of every train user's history, with h from the base LM (no adapter) and e frozen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from shielded_recrl.explainer.settings import Precision, PromptSettings
from shielded_recrl.files import atomic, write_json
from shielded_recrl.ranker.metrics import ranking_metrics
from shielded_recrl.shield.serving import RankerStates, ReadOut, Serving, load_states, served_scores
from shielded_recrl.shield.settings import RankingSettings

# Next-item examples taken from the end of each train user's history.
POSITIONS = 6


def main(
    *,
    data: Path,
    ranker: Path,
    base: Path,
    templates: Path,
    out: Path,
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")],
    settings: Annotated[RankingSettings, tyro.conf.arg(name="")],
    precision: Precision = "fp32",
    seed: int = 42,
) -> None:
    """Fit the read-out and choose gamma.

    Args:
        data: folder of the prepared dataset.
        ranker: states.safetensors of the ranker.
        base: folder of the base LM.
        templates: folder of the prompt templates.
        out: readout.safetensors to write; readout.json is written beside it.
        prompt: prompt lengths.
        settings: roles and the fit.
        precision: precision the base is served in.
        seed: seed of roles and of the order of examples.
    """
    from safetensors.numpy import save_file

    from shielded_recrl.explainer.base import default_device, load_base
    from shielded_recrl.explainer.lm import prefix_states

    serving = Serving.load(data, base, templates, prompt, settings, seed)
    states = load_states(ranker)
    model = load_base(base, precision, default_device())

    prefixes, targets = next_item_examples(serving)
    hidden = prefix_states(model, prefixes)
    weight = fit_readout(
        hidden,
        torch.tensor(targets),
        torch.from_numpy(states.items),
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        seed=seed,
    ).numpy()

    users = np.setdiff1d(serving.splits.evaluable("valid"), serving.roles.heldout)
    validation = prefix_states(model, [serving.prefix(user, "valid") for user in users]).numpy()
    curve = {
        gamma: _validation_ndcg(serving, states, users, validation, ReadOut(weight, gamma))
        for gamma in sorted(
            {0.0, *settings.gammas, *[settings.gamma] * (settings.gamma is not None)}
        )
    }
    alone = _validation_ndcg(serving, states, users, validation, ReadOut(weight, 1.0), lm_only=True)
    gamma = (
        settings.gamma if settings.gamma is not None else max(curve, key=lambda g: (curve[g], -g))
    )

    with atomic(out) as partial:
        save_file({"weight": weight, "gamma": np.array(gamma)}, partial)
    write_json(
        out.with_suffix(".json"),
        {
            "gamma": gamma,
            "chosen_on": "validation" if settings.gamma is None else "config",
            "users": len(users),
            "examples": len(targets),
            "sasrec_alone": curve[0.0],
            "lm_alone": alone,
            "served": [{"gamma": g, "ndcg@10": value} for g, value in curve.items()],
        },
    )
    print(
        f"{out}: gamma {gamma:g}; validation NDCG@10 SASRec {curve[0.0]:.4f}, "
        f"LM alone {alone:.4f}, served {curve[gamma]:.4f}"
    )


def next_item_examples(serving: Serving) -> tuple[list[tuple[int, ...]], list[int]]:
    """Prefixes and next items from the train histories of train users."""
    prefixes, targets = [], []
    for user in serving.roles.train:
        items = serving.splits.train[user].tolist()
        for position in range(max(1, len(items) - POSITIONS), len(items)):
            prefixes.append(serving.prompts.prefix(items[:position])[0])
            targets.append(items[position])
    return prefixes, targets


def fit_readout(
    hidden: Tensor,
    targets: Tensor,
    items: Tensor,
    *,
    weight_decay: float,
    epochs: int,
    seed: int,
    learning_rate: float = 1e-2,
    batch_size: int = 256,
) -> Tensor:
    """W [d_r, d] by AdamW on the full-catalogue cross-entropy.

    Args:
        hidden: h [n, d].
        targets: next items [n], from 1.
        items: e [I + 1, d_r]; row 0 is padding and no candidate.
        weight_decay: decoupled weight decay.
        epochs: passes over the examples.
        seed: seed of the order of examples.
        learning_rate: AdamW learning rate.
        batch_size: examples in a step.
    """
    weight = torch.zeros(items.shape[1], hidden.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=learning_rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(hidden), generator=generator).split(batch_size):
            logits = hidden[batch] @ weight.T @ items[1:].T
            loss = torch.nn.functional.cross_entropy(logits, targets[batch] - 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach()


def _validation_ndcg(
    serving: Serving,
    states: RankerStates,
    users: np.ndarray,
    hidden: np.ndarray,
    readout: ReadOut,
    lm_only: bool = False,
) -> float:
    sasrec = states.valid_users[users] * (0.0 if lm_only else 1.0)
    scores = served_scores(sasrec, hidden, states.items, readout)
    masks = (
        serving.splits.relevant_mask("valid", users),
        serving.splits.seen_mask("valid", users),
    )
    return float(ranking_metrics(scores, *masks).ndcg.mean())
