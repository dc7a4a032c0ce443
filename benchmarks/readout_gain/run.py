"""Does the LM's read-out add anything to the ranker? Cross-fitted over users.

In: a prepared dataset, and one or more pairs of a ranker's states and a base LM trained on it. Out:
a record in --out, in place of one of the same dataset and pairs, and a row of the README's table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.lm import prefix_states
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.files import read_json, write_json
from shielded_recrl.shield.embed import POSITIONS
from shielded_recrl.shield.readout import Cohort, fit_readout, stacked_gamma
from shielded_recrl.shield.serving import ReadOut, Serving, load_states
from shielded_recrl.shield.settings import RankingSettings
from shielded_recrl.statistics import paired_bootstrap

TEMPLATES = Path(__file__).resolve().parents[2] / "resources" / "prompts"
SETTINGS = RankingSettings()
FOLDS = 3
SCORES = ("sasrec", "lm", "served")


class States(NamedTuple):
    """What one pair of ranker and LM knows of a dataset, computed once for all folds."""

    items: np.ndarray  # e [I + 1, d_r]
    owners: np.ndarray  # user of each next-item example [n]
    targets: np.ndarray  # its item [n]
    hidden: np.ndarray  # h before it [n, d]
    cohorts: dict[str, Cohort]  # split -> everybody with something new in it

    def cohort(self, split: str, users: np.ndarray) -> Cohort:
        """Some of a split's users."""
        everybody = self.cohorts[split]
        hidden = everybody.hidden[np.searchsorted(everybody.users, users)]
        return everybody._replace(users=users, hidden=hidden)


def main(argv: Sequence[str] | None = None) -> None:
    """Cross-fit every pair of models, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of the record")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared dataset")
    pair = {"nargs": 2, "type": Path, "metavar": ("STATES", "BASE")}
    parser.add_argument("--models", action="append", required=True, **pair)
    parser.add_argument("--prompt-tokens", type=int, default=72)
    parser.add_argument("--role-seeds", type=int, default=3, choices=range(1, 100), metavar="N")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args(argv)
    pairs = [states(options.data, *pair, options.prompt_tokens) for pair in options.models]
    seeds = list(range(options.role_seeds))
    names = [base.name for _, base in options.models]
    record = {"dataset": options.dataset, "method": "after", "models": names}
    known = read_json(options.out) if options.out.exists() else []
    others = [old for old in known if not record.items() <= old.items()]
    record |= {"role_seeds": seeds, "folds": FOLDS, **measure(pairs, seeds)}
    write_json(options.out, [*others, record])
    print(table_row(record))


def states(data: Path, ranker: Path, base: Path, prompt_tokens: int) -> States:
    """Run the base LM over every prefix that a fit or a ranking reads."""
    prompt, known = PromptSettings(prompt_tokens=prompt_tokens), load_states(ranker)
    serving = Serving.load(data, base, TEMPLATES, prompt, SETTINGS, seed=0)
    model, splits = load_base(base, "fp32", default_device()), serving.splits
    examples, prefixes = [], []
    for user in splits.evaluable("test").tolist():
        items = splits.train[user].tolist()
        for end in range(max(1, len(items) - POSITIONS), len(items)):
            examples.append((user, items[end]))
            prefixes.append(serving.prompts.prefix(items[:end])[0])
    cohorts = {}
    for split in ("valid", "test"):
        users = splits.evaluable(split)
        hidden = prefix_states(model, [serving.prefix(user, split) for user in users])
        cohorts[split] = Cohort(serving, known, split, users, hidden.numpy())
    owners, targets = np.array(examples).T
    return States(known.items, owners, targets, prefix_states(model, prefixes).numpy(), cohorts)


def measure(pairs: Sequence[States], seeds: Sequence[int]) -> dict:
    """NDCG@10 of each way of ranking, over users: means over models and seeds, then a bootstrap."""
    users = {split: cohort.users for split, cohort in pairs[0].cohorts.items()}
    sums = {split: np.zeros((len(users[split]), len(SCORES))) for split in users}
    times = {split: np.zeros((len(users[split]), 1)) for split in users}
    gammas = []
    for pair, seed in product(pairs, seeds):
        for gamma, cohort, values in cross_fit(pair, seed):
            places = np.searchsorted(users[cohort.split], cohort.users)
            sums[cohort.split][places] += values
            times[cohort.split][places] += 1
            gammas += [gamma] * (cohort.split == "test")
    record = {"gammas": gammas, "gamma_mean": fmean(gammas), "positive": sum(g > 0 for g in gammas)}
    for split in users:
        mean = dict(zip(SCORES, (sums[split] / times[split]).T, strict=True))
        mean["gain"] = mean["served"] - mean["sasrec"]
        intervals = {name: paired_bootstrap(values)._asdict() for name, values in mean.items()}
        record[split] = {"users": len(users[split]), **intervals}
    return record


def cross_fit(pair: States, seed: int) -> Iterator[tuple[float, Cohort, np.ndarray]]:
    """Hold out every fold in turn: gamma, those who chose it or the fold, and NDCG@10 [U, 3]."""
    order = np.random.default_rng(seed).permutation(pair.cohorts["test"].users)
    for fold in np.array_split(order, FOLDS):
        examples = np.flatnonzero(~np.isin(pair.owners, fold))
        drawn = np.random.default_rng(seed).permutation(len(examples))[: SETTINGS.examples]
        rows = examples[np.sort(drawn)]
        fit = {"weight_decay": SETTINGS.weight_decay, "epochs": SETTINGS.epochs, "seed": seed}
        arrays = (pair.hidden[rows], pair.targets[rows], pair.items)
        weight = fit_readout(*map(torch.from_numpy, arrays), **fit).numpy()
        valid = pair.cohort("valid", np.setdiff1d(pair.cohorts["valid"].users, fold))
        gamma = stacked_gamma(partial(valid.choices, weight), max(SETTINGS.gammas))
        for cohort in (valid, pair.cohort("test", np.sort(fold))):
            ways = ((0.0, 1.0), (1.0, 0.0), (gamma, 1.0))
            values = [cohort.ndcg(ReadOut(weight, lm), sasrec) for lm, sasrec in ways]
            yield gamma, cohort, np.stack(values, axis=1)


def table_row(record: dict) -> str:
    """A row of the README's table."""
    test, fits = record["test"], len(record["gammas"])
    ways = " | ".join(f"{test[way]['mean']:.4f}" for way in SCORES)
    mean, low, high = (f"{test['gain'][end]:+.4f}" for end in ("mean", "low", "high"))
    return (
        f"| {record['dataset']} | {test['users']:,} | {len(record['models'])} | {fits} | {ways} "
        f"| {mean} [{low}, {high}] | {record['gamma_mean']:.2f} | {record['positive']} |"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"run.py: error: {error}")
