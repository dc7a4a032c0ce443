"""One training loop for both stages of the recommender.

In: prepared dialogues and emotions. Out: the weights of the epoch with the lowest loss on the valid
split. A batch holds dialogues of one fold, seen through the counts of the other folds; the valid split is
seen through the counts of all train dialogues, the test split through those of train and valid. No
dialogue is ever seen through counts that hold it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.recommender.contexts import Context, Sample
from shielded_recrl.dialogue.recommender.evidence import Evidence, count, cross_fit
from shielded_recrl.dialogue.recommender.fusion import Batch, Known, Recommender, collate, known
from shielded_recrl.dialogue.recommender.items import Catalogue, describe
from shielded_recrl.dialogue.settings import FusionSettings, RecommendSettings
from shielded_recrl.errors import UserError

# Contexts scored at once where nothing is learned.
BLOCK = 128
# Beside the folds of train.
SERVED, WHOLE = -2, -1


@dataclass(frozen=True)
class Knowledge:
    """What is counted before anything is learned.

    Attributes:
        catalogue: the items.
        whole: evidence of all train dialogues, for the valid split.
        served: evidence of train and valid dialogues, for all others.
        fold_of: number of a train dialogue -> its fold; of a valid one -> `WHOLE`.
        folds: evidence of all folds but one, for each.
        word_decay: see `fusion.collate`.
    """

    catalogue: Catalogue
    whole: Known
    served: Known
    fold_of: dict[int, int]
    folds: tuple[Known, ...]
    word_decay: float

    @classmethod
    def of(cls, dialogues: Dialogues, settings: FusionSettings) -> Knowledge:
        """Count the train dialogues."""
        train, valid = dialogues.split("train"), dialogues.split("valid")
        catalogue = describe(dialogues.items, train, settings.min_word_dialogues)
        counts = count(train, catalogue)
        priors = settings.item_prior, settings.word_prior
        parts = cross_fit(counts, catalogue, *priors, settings.folds)
        return cls(
            catalogue,
            known(Evidence.fit(counts, catalogue, *priors)),
            known(Evidence.fit(count([*train, *valid], catalogue), catalogue, *priors)),
            {dialogue.index: WHOLE for dialogue in valid}
            | {train[row].index: fold for fold, (rows, _) in enumerate(parts) for row in rows},
            tuple(known(evidence) for _, evidence in parts),
            settings.word_decay,
        )

    def groups(self, contexts: Sequence[Context]) -> list[tuple[Known, np.ndarray]]:
        """Evidence, and the contexts to be seen through it: never one that counts them."""
        fold = np.array([self.fold_of.get(context.dialogue, SERVED) for context in contexts])
        sources = [(SERVED, self.served), (WHOLE, self.whole), *enumerate(self.folds)]
        return [(evidence, np.flatnonzero(fold == k)) for k, evidence in sources if k in fold]

    def scores(
        self, model: Recommender, contexts: Sequence[Context]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Scores [B, I+1] a block at a time, each with the places of its contexts."""
        model.eval()
        for evidence, places in self.groups(contexts):
            for start in range(0, len(places), BLOCK):
                some = places[start : start + BLOCK].tolist()
                batch = self.collate([contexts[place] for place in some])
                # Not around the yield: whoever asks for the next block may be learning.
                with torch.no_grad():
                    scores = model(batch, evidence)
                yield some, scores

    def collate(self, contexts: Sequence[Context]) -> Batch:
        """Contexts as one batch."""
        return collate(contexts, self.catalogue.vocabulary, self.word_decay)


class Fit(NamedTuple):
    """Weights of the best epoch, never 0, and a row for each epoch, the one before the first included."""

    weights: dict[str, Tensor]
    history: list[dict[str, Any]]
    best_epoch: int


class Schedule(NamedTuple):
    """How long and how fast to train."""

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    vector_rate: float
    weight_decay: float

    @classmethod
    def of(cls, settings: FusionSettings | RecommendSettings) -> Schedule:
        """That of a stage."""
        return cls(*(getattr(settings, name) for name in cls._fields))


def fit(
    model: Recommender,
    knowledge: Knowledge,
    train: Sequence[Sample],
    valid: Sequence[Sample],
    weigh: Callable[[Sample], float],
    schedule: Schedule,
    seed: int,
    name: str,
) -> Fit:
    """Minimise the weighted cross-entropy of the named film among all.

    Args:
        model: initial weights; trained in place.
        knowledge: catalogue and evidence.
        train: samples to learn from.
        valid: samples to stop by.
        weigh: weight of a sample in the loss.
        schedule: epochs, patience and step size.
        seed: of order and dropout.
        name: of the stage, for the progress bar and messages.

    Raises:
        UserError: the loss is no number any more, or no epoch makes it lower on the valid split.
    """
    vectors = {"words", "attributes", "mentions.weight"}
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [named[n] for n in sorted(vectors)],
                "lr": schedule.learning_rate * schedule.vector_rate,
                "weight_decay": schedule.weight_decay,
            },
            {"params": [named[n] for n in sorted(named.keys() - vectors)], "weight_decay": 0.0},
        ],
        lr=schedule.learning_rate,
    )
    history = [{"epoch": 0, "loss": None, "valid_loss": mean_loss(model, knowledge, valid, weigh)}]
    best, best_epoch = copied(model), 0
    groups = knowledge.groups([sample.context for sample in train])
    with (
        torch.random.fork_rng(devices=[]),
        tqdm(desc=name, unit="epoch", total=schedule.epochs, mininterval=5) as bar,
    ):
        for epoch in range(1, schedule.epochs + 1):
            rng = np.random.default_rng((seed, epoch))
            torch.manual_seed(int(rng.integers(2**63)))
            model.train()
            total = count = 0.0
            for evidence, some in _batches(groups, schedule.batch_size, rng):
                samples = [train[place] for place in some]
                scores = model(knowledge.collate([sample.context for sample in samples]), evidence)
                weights = torch.tensor([weigh(sample) for sample in samples])
                losses = F.cross_entropy(scores, _items(samples), reduction="none")
                loss = (losses * weights).sum() / weights.sum()
                if not math.isfinite(loss.item()):
                    raise UserError(
                        f"{name} diverged in epoch {epoch}: its loss is {loss.item()}; "
                        "lower its learning_rate"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float((losses.detach() * weights).sum())
                count += float(weights.sum())
            valid_loss = mean_loss(model, knowledge, valid, weigh)
            history.append({"epoch": epoch, "loss": total / count, "valid_loss": valid_loss})
            if valid_loss < history[best_epoch]["valid_loss"]:
                best, best_epoch = copied(model), epoch
            bar.set_postfix({"valid loss": f"{valid_loss:.4f}"}, refresh=False)
            bar.update()
            if epoch - best_epoch >= schedule.patience:
                break
    if best_epoch == 0:
        raise UserError(
            f"{name} learned nothing: after none of its {epoch} epochs is the loss of the valid split "
            f"below the {history[0]['valid_loss']:.4f} before them; change its learning_rate, or "
            "train on more dialogues"
        )
    model.load_state_dict(best)
    model.eval()
    return Fit(best, history, best_epoch)


def mean_loss(
    model: Recommender,
    knowledge: Knowledge,
    samples: Sequence[Sample],
    weigh: Callable[[Sample], float],
) -> float:
    """Weighted mean cross-entropy."""
    losses = torch.zeros(len(samples), dtype=torch.float64)
    for places, scores in knowledge.scores(model, [sample.context for sample in samples]):
        items = _items([samples[place] for place in places])
        losses[places] = F.cross_entropy(scores, items, reduction="none").double()
    weights = torch.tensor([weigh(sample) for sample in samples], dtype=torch.float64)
    return float((losses * weights).sum() / weights.sum())


def copied(model: Recommender) -> dict[str, Tensor]:
    """A copy of the weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _batches(
    groups: Sequence[tuple[Known, np.ndarray]], size: int, rng: np.random.Generator
) -> list[tuple[Known, np.ndarray]]:
    """Batches of one fold each, in random order."""
    batches = []
    for evidence, places in groups:
        drawn = rng.permutation(places)
        batches += [(evidence, drawn[at : at + size]) for at in range(0, len(drawn), size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def _items(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([sample.item for sample in samples])
