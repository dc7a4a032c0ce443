"""The served system for one user at a time: rank, explain, and check what was said.

In: a finished run of a study. Out: `Answer`s. Scores are those of `rl evaluate`, with the adapter
as the shield serves it: off under `separate`, after the prefix only under `activated`, else on.
Explanations are always written with the adapter.

A token is drawn with a number keyed by (seed, user, item, place in the text): a text does not
depend on how many are asked for, and two runs of one seed differ by their weights alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shielded_recrl.config import Config
from shielded_recrl.errors import UserError
from shielded_recrl.explain.answers import Answer, Past, Recommendation
from shielded_recrl.explain.claims import find_claims
from shielded_recrl.explain.dataset import Dataset
from shielded_recrl.explain.runs import Run, Runs
from shielded_recrl.explainer.base import default_device, load_base, load_tokenizer
from shielded_recrl.explainer.lm import load_adapter
from shielded_recrl.explainer.prompts import PromptBuilder, Request
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.rl.rollout import decode, sample
from shielded_recrl.settings import section
from shielded_recrl.shield.serving import (
    RankerStates,
    ReadOut,
    Serving,
    load_readout,
    load_states,
    served_scores,
    served_states,
    top_items,
)
from shielded_recrl.shield.settings import RoleSettings

# Runs and answers a library keeps.
MODELS, ANSWERS = 2, 512


class Explainer:
    """One run, ready to serve."""

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        serving: Serving,
        states: RankerStates,
        readout: ReadOut,
        model: nn.Module,
    ):
        """
        Args:
            run: what is served.
            dataset: its users and items.
            serving: the same, as prompts.
            states: of the ranker.
            readout: of the language model.
            model: base LM with the run's adapter.
        """
        self.run, self.dataset, self.serving = run, dataset, serving
        self.states, self.readout, self.model = states, readout, model

    @classmethod
    def load(cls, run: Run, dataset: Dataset | None = None) -> Explainer:
        """Read everything a run is served from.

        Args:
            run: see `Runs.run`.
            dataset: of the run, where it is at hand already.

        Raises:
            UserError: a file is damaged.
        """
        explainer = run.settings.explainer
        dataset = dataset or load_dataset(run.dataset, run.data, run.config)
        prompts = PromptBuilder(
            load_tokenizer(run.base),
            run.templates,
            dataset.items,
            section(explainer, PromptSettings),
        )
        base = load_base(run.base, explainer.precision, default_device())
        return cls(
            run,
            dataset,
            Serving(dataset.splits, dataset.roles, prompts),
            load_states(run.ranker),
            load_readout(run.readout),
            load_adapter(base, run.adapter),
        )

    def recommend(self, user: int, k: int = 5) -> Answer:
        """The k best unseen items of a user, fewer where there are no more, with explanations.

        Args:
            user: dense id.
            k: items at the most.

        Raises:
            UserError: k is less than 1.
        """
        if k < 1:
            raise UserError(f"-k {k}: at least one item can be recommended")
        run, dataset = self.run, self.dataset
        ranker, lm, score = self._scores(user)
        ranked = top_items(score[None], dataset.splits, "test", [user], k)[0]
        items = [int(item) for item in ranked if item > 0]
        requests = [self.serving.request(user, item) for item in items]
        texts, ended = self._explain(requests)
        history = dataset.history(user)
        # What did not fit into the prompt is not named; the most recent items are.
        named = len(self.serving.prompts.prefix(history)[1])
        wanted = set(dataset.splits.test[user].tolist())
        return Answer(
            dataset=dataset.name,
            synthetic=dataset.synthetic,
            sequential=dataset.sequential,
            variant=run.variant,
            seed=run.seed,
            shield=run.settings.shield.kind,
            gamma=self.readout.gamma,
            temperature=run.config.sampling.temperature,
            top_p=run.config.sampling.top_p,
            person=dataset.person(user),
            history=tuple(
                Past(dataset.thing(item), place >= len(history) - named)
                for place, item in enumerate(history)
            ),
            recommendations=tuple(
                Recommendation(
                    position=position,
                    thing=dataset.thing(item),
                    ranker_score=float(ranker[item]),
                    lm_score=float(lm[item]),
                    score=float(score[item]),
                    in_test=item in wanted,
                    explanation=text,
                    ended=done,
                    claims=find_claims(text, request, dataset.index),
                )
                for position, (item, request, text, done) in enumerate(
                    zip(items, requests, texts, ended, strict=True), start=1
                )
            ),
        )

    def _scores(self, user: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ranker's part, the language model's part, and the served score of each item."""
        off = self.run.settings.shield.kind == "separate"
        with self.model.disable_adapter() if off else nullcontext():
            hidden = served_states(self.model, [self.serving.prefix(user)]).numpy()
        own = self.states.test_users[[user]]
        served = served_scores(own, hidden, self.states.items, self.readout)[0]
        ranker = (own.astype(np.float64) @ self.states.items.T.astype(np.float64))[0]
        return ranker, served - ranker, served

    def _explain(self, requests: Sequence[Request]) -> tuple[list[str], list[bool]]:
        """A text for each request, and whether it ended by itself."""
        if not requests:
            return [], []
        sampling, tokenizer = self.run.config.sampling, self.serving.prompts.tokenizer
        size = self.run.settings.explainer.explanation_tokens
        uniforms = np.stack(
            [
                np.random.default_rng([self.run.seed, one.user, one.item]).random(size)
                for one in requests
            ]
        )
        rollout = sample(
            self.model,
            [request.prompt for request in requests],
            tokenizer,
            torch.from_numpy(uniforms),
            sampling.temperature,
            sampling.top_p,
            [len(request.prompt) - len(request.prefix) for request in requests],
        )
        return decode(rollout, tokenizer), rollout.ended.tolist()


def load_dataset(name: str, folder: Path, config: Config) -> Dataset:
    """A dataset with the roles that the study gives its users."""
    return Dataset.load(name, folder, section(config.ranking, RoleSettings), config.seed)


class Library:
    """Answers of all runs of a study; what is slow is done once, by one thread at a time."""

    def __init__(self, runs: Runs):
        """
        Args:
            runs: of the study.
        """
        self.runs = runs
        self._lock = threading.RLock()
        self._datasets: OrderedDict[Hashable, Dataset] = OrderedDict()
        self._explainers: OrderedDict[Hashable, Explainer] = OrderedDict()
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()

    def dataset(self, name: str) -> Dataset:
        """A dataset of the study.

        Raises:
            UserError: there is none of this name, or it is not prepared.
        """

        def load() -> Dataset:
            return load_dataset(name, self.runs.data(name), self.runs.study.config)

        if (known := self._datasets.get(name)) is not None:
            return known
        with self._lock:
            return _kept(self._datasets, name, load, MODELS)

    def recommend(
        self, dataset: str, variant: str, seed: int | None, user: int, k: int = 5
    ) -> Answer:
        """See `Explainer.recommend`.

        Raises:
            UserError: the study has no such run, or a file of it is missing.
        """
        run = self.runs.run(dataset, variant, seed)
        name = (run.dataset, run.variant, run.seed)
        if (known := self._answers.get((*name, user, k))) is not None:
            return known

        def load() -> Explainer:
            return Explainer.load(run, self.dataset(dataset))

        def ask() -> Answer:
            return _kept(self._explainers, name, load, MODELS).recommend(user, k)

        with self._lock:
            return _kept(self._answers, (*name, user, k), ask, ANSWERS)


def _kept(kept: OrderedDict, key: Hashable, make: Callable[[], Any], most: int) -> Any:
    """What is kept under a key, made where it is not; the least recently used goes first."""
    if key not in kept:
        # Room is made before: two models fit where three may not.
        while len(kept) >= most:
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    return kept[key]
