"""The emotion classifier: softmax regression on hashed n-grams and the word list.

In: texts. Out: a distribution over the nine emotions.

    x = [w / |w|, l / |l|, s]      w, l: rarities (idf) of the n-grams of words, of letters, in the text
                                   s: the word list's distribution over the nine emotions
    p(e | text) ~ exp(<v_e, x> + b_e)                e: the eight that GoEmotions has examples of
    q(nostalgia) = s(nostalgia),  q(e) = (1 - s(nostalgia)) p(e | text)

v and b are fitted to the shares of a comment's emotions by L-BFGS (scikit-learn), which is convex and
draws nothing. Of the fit, b_e is then lowered by `balance` * log share of e in training, so that rare
emotions are found, and all is divided by the temperature that suits the dev split best (Guo et al.
2017).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from shielded_recrl.dialogue.emotion import lexicon
from shielded_recrl.dialogue.emotion.features import vectors
from shielded_recrl.dialogue.emotion.goemotions import Comments
from shielded_recrl.dialogue.emotion.labels import EMOTIONS, LEARNED, NOSTALGIA
from shielded_recrl.dialogue.settings import EmotionFitSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import intact, sealed

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WEIGHTS = "model.safetensors"
AGAIN = "train it with `python -m shielded_recrl.dialogue emotions`"
# Texts in one pass: bounds the memory of their vectors.
BATCH = 4096
TEMPERATURES = (0.1, 10.0)


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        settings: of the vectors and the fit.
        columns: int32 [k], the columns of the vectors that are read, ascending.
        rarity: float32 [k], idf of each.
        weights: float32 [k + 9, 8], of the emotions in `LEARNED`; the last rows are those of the word
            list's nine.
        bias: float32 [8].
    """

    settings: EmotionFitSettings
    columns: np.ndarray
    rarity: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, train: Comments, dev: Comments, settings: EmotionFitSettings) -> Self:
        """Fit to one split; take the temperature from the other.

        Raises:
            UserError: no comment of the first shows one of the eight emotions, or nothing of its
                words is said twice.
        """
        from scipy.optimize import minimize_scalar
        from scipy.special import log_softmax, logsumexp

        targets = train.targets[:, LEARNED]
        shares = targets.mean(axis=0)
        if not shares.all():
            raise UserError(
                f"GoEmotions, train: no comment is {EMOTIONS[LEARNED[int(shares.argmin())]]}; the "
                "classifier needs comments of each emotion but nostalgia"
            )
        ones = vectors(train.texts, settings.hash_bits)
        counts = np.bincount(ones.indices, minlength=ones.shape[1])
        columns = np.flatnonzero(counts >= settings.min_texts).astype(np.int32)
        rarity = (np.log((1 + len(targets)) / (1 + counts[columns])) + 1).astype(np.float32)
        unfitted = np.zeros((len(columns) + len(EMOTIONS), len(LEARNED)), np.float32)
        model = cls(settings, columns, rarity, unfitted, np.zeros(len(LEARNED), np.float32))
        if not 0 < model._words < len(columns):
            raise UserError(
                f"GoEmotions, train: no word is in {settings.min_texts} comments; give more "
                "comments or lower dialogue.emotions.min_texts"
            )
        weights, bias = _regression(
            model._rows(ones, lexicon.probabilities(train.texts)), targets, settings
        )
        model = cls(settings, columns, rarity, weights, bias - settings.balance * np.log(shares))

        said = lexicon.probabilities(dev.texts)
        logits, wanted = model._logits(dev.texts, said), dev.targets[:, LEARNED]

        def loss(log_heat: float) -> float:
            return -float((wanted * log_softmax(logits / np.exp(log_heat), axis=1)).sum())

        heat = np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x)
        bias = model.bias - logsumexp(model.bias)
        return cls(
            settings,
            columns,
            rarity,
            (model.weights / heat).astype(np.float32),
            (bias / heat).astype(np.float32),
        )

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Distribution [n, 9] of the emotions of texts, in the order of `EMOTIONS`."""
        from scipy.special import softmax

        found = np.zeros((len(texts), len(EMOTIONS)))
        if not len(texts):
            return found
        said = lexicon.probabilities(texts)
        nostalgia = said[:, NOSTALGIA]
        found[:, LEARNED] = (1 - nostalgia[:, None]) * softmax(self._logits(texts, said), axis=1)
        found[:, NOSTALGIA] = nostalgia
        return found

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` into a folder."""
        from safetensors.numpy import save_file

        about = {"emotions": EMOTIONS, "settings": self.settings.model_dump()}
        with sealed(Path(folder) / WEIGHTS) as partial:
            save_file(
                {
                    "columns": self.columns,
                    "rarity": self.rarity,
                    "weights": self.weights,
                    "bias": self.bias,
                },
                partial,
                # One key: safetensors writes several in an order that differs from run to run.
                {"emotion": json.dumps(about, sort_keys=True)},
            )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged, or no emotion classifier of these emotions.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / WEIGHTS
        if not path.is_file():
            raise UserError(f"{path}: no such file; {AGAIN}")
        try:
            with safe_open(intact(path), "np") as file:
                about = json.loads((file.metadata() or {})["emotion"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            model = cls(EmotionFitSettings(**about["settings"]), **tensors)
            if tuple(about["emotions"]) != EMOTIONS:
                raise ValueError("other emotions")
            model._check()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); {AGAIN}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path}: not an emotion classifier of this kind; {AGAIN}") from error
        return model

    @property
    def _words(self) -> int:
        """How many of the columns are n-grams of words."""
        return int(np.searchsorted(self.columns, 1 << self.settings.hash_bits))

    def _check(self) -> None:
        """Raise ValueError unless shapes, types and numbers are those of a fit."""
        read, eight = len(self.columns), len(LEARNED)
        shapes = {"rarity": (read,), "weights": (read + len(EMOTIONS), eight), "bias": (eight,)}
        if self.columns.dtype != np.int32 or self.columns.ndim != 1 or not 0 < self._words < read:
            raise ValueError("no columns")
        if (np.diff(self.columns) <= 0).any() or not (
            0 <= self.columns[0] <= self.columns[-1] < 2 << self.settings.hash_bits
        ):
            raise ValueError("columns in disorder")
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.dtype != np.float32 or values.shape != shape:
                raise ValueError(f"{name}: {values.dtype} {values.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: not all are numbers")

    def _rows(self, ones: csr_matrix, said: np.ndarray) -> csr_matrix:
        """Rows [n, k + 9]: the columns read, of words and of letters each of length 1; the word list."""
        from scipy.sparse import csr_matrix, diags, hstack
        from sklearn.preprocessing import normalize

        rows = ones[:, self.columns] @ diags(self.rarity)
        left, right = rows[:, : self._words], rows[:, self._words :]
        listed = csr_matrix(said.astype(np.float32))
        return hstack([normalize(left), normalize(right), listed], format="csr")

    def _logits(self, texts: Sequence[str], said: np.ndarray) -> np.ndarray:
        rows = (
            self._rows(
                vectors(texts[start : start + BATCH], self.settings.hash_bits),
                said[start : start + BATCH],
            )
            for start in range(0, len(texts), BATCH)
        )
        return np.concatenate([row @ self.weights + self.bias for row in rows]).astype(np.float64)


def _regression(
    rows: csr_matrix, targets: np.ndarray, settings: EmotionFitSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [k + 9, 8] and bias [8] of the regression of shares [n, 8] on rows [n, k + 9].

    A comment of several emotions enters once for each, with its share as weight: the loss is the
    cross-entropy from its shares.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    comment, emotion = np.nonzero(targets)
    fit = LogisticRegression(C=settings.strength, max_iter=settings.iterations, tol=1e-5)
    with warnings.catch_warnings():
        # Iterations are bounded on purpose: what is left moves no score.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit.fit(rows[comment], emotion, sample_weight=targets[comment, emotion])
    return np.ascontiguousarray(fit.coef_.T, np.float32), fit.intercept_.astype(np.float32)
