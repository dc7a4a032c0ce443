"""Toxicity of texts: alt-profanity-check, or a Detoxify-style sequence classifier.

In: texts. Out: a probability for each text that it is offensive, and a summary of those.

alt-profanity-check is a linear model over words that ships inside its package. Detoxify (Hanu and
Unitary team 2020) is a multi-label transformer: a sigmoid for each label, of which `toxic`
(`toxicity` in its later models) is the score by which it judges a text. A maximum over all labels
would be no toxicity: some of its models have labels that only tell whom a text speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shielded_recrl.audit.resampling import interval, percentile_of_draws
from shielded_recrl.audit.settings import EMBEDDED_SCORER, ScorerSettings
from shielded_recrl.errors import UserError, first_line
from shielded_recrl.explainer.fetch import PATTERNS, hub_reason
from shielded_recrl.files import sha256
from shielded_recrl.shards import WHOLE, Shard, items
from shielded_recrl.statistics import paired_bootstrap

SCORER = f"{EMBEDDED_SCORER} {version(EMBEDDED_SCORER)}"
LABELS = ("toxic", "toxicity")
# Texts scored at a time, and how many of them one after the other make a chunk.
BATCH, CHUNK = 32, 1024
# Weights that are pickles, which may run any code as they are loaded: Detoxify's own releases are.
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


class Scorer(NamedTuple):
    """What judges texts, by name, and its scores [N] of N texts."""

    name: str
    scores: Callable[[Sequence[str]], np.ndarray]


def text_scores(texts: Sequence[str], settings: ScorerSettings, shard: Shard = WHOLE) -> np.ndarray:
    """Toxicity [n] of a shard's texts.

    A classifier rounds as its batches are shaped, so that texts are scored in chunks of a fixed size,
    of which a shard takes whole ones.

    Args:
        texts: of all shards.
        settings: the scorer.
        shard: whose; by default all texts.

    Raises:
        UserError: see `load_scorer`.
    """
    if not (mine := items(len(texts), CHUNK, shard)):
        return np.zeros(0)
    scorer = load_scorer(settings)
    return np.concatenate(
        [
            scorer.scores(texts[start : min(start + CHUNK, mine.stop)])
            for start in range(mine.start, mine.stop, CHUNK)
        ]
    )


def load_scorer(settings: ScorerSettings) -> Scorer:
    """The scorer of the settings; a hub id is downloaded at its commit, a local folder only read.

    Raises:
        UserError: it cannot be downloaded or read, is no Detoxify-style classifier, or torch,
            transformers or huggingface_hub is missing.
    """
    if settings.scorer == EMBEDDED_SCORER:
        return Scorer(scorer_name(settings), toxicity_scores)
    try:
        import huggingface_hub  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"audit.scorer: {settings.scorer} needs torch and transformers ({error}); install them "
            f"where the audit runs, or set audit.scorer to {EMBEDDED_SCORER}"
        ) from error
    if settings.scorer_on_hub:
        folder = _download(settings.scorer, settings.scorer_revision)
    else:
        folder = Path(settings.scorer)
    scores = _classifier(folder)
    return Scorer(scorer_name(settings), scores)


def scorer_name(settings: ScorerSettings) -> str:
    """Who judges: package, hub id or folder, and the release, commit or digest of it."""
    if settings.scorer == EMBEDDED_SCORER:
        return SCORER
    if settings.scorer_on_hub:
        return f"{settings.scorer} at {settings.scorer_revision}"
    folder = Path(settings.scorer)
    return f"{folder.resolve().name}, sha256 {sha256(folder)[:12]}"


def toxicity_scores(texts: Sequence[str]) -> np.ndarray:
    """Probability of each text [N] to be offensive; a text without content scores 0."""
    from profanity_check import predict_prob

    return _filled(texts, predict_prob)


def _filled(texts: Sequence[str], score: Callable[[list[str]], Any]) -> np.ndarray:
    """Scores [N] of the texts with content; the others get 0."""
    scores = np.zeros(len(texts))
    filled = [index for index, text in enumerate(texts) if text.strip()]
    if filled:
        scores[filled] = score([texts[index] for index in filled])
    return scores


def _download(repository: str, revision: str | None) -> Path:
    """Folder of a hub repository at a commit, from the cache where it is there; no pickle."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"audit.scorer: {repository} at {revision} cannot be downloaded ({hub_reason(error)}); "
            "check id, commit and network, or give a local folder"
        ) from error


def _classifier(folder: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Scores of a multi-label classifier in transformers format; nothing but the folder is read."""
    if (pickled := _pickled(folder)) is not None:
        raise UserError(
            f"{pickled}: a pickle, which may run any code, is not loaded; audit.scorer needs the "
            "classifier as safetensors: `explainer fetch` gets one from the hub, and Detoxify's own "
            "checkpoints are converted by the lines in docs/audit.md"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json there; audit.scorer must be `{EMBEDDED_SCORER}`, a folder "
            "in transformers format that starts with ./, ../ or /, or a hub id"
        )
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TextClassificationPipeline,
    )

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(
            f"{folder}: the scorer cannot be loaded ({first_line(error)}); expected a sequence "
            "classifier with its tokenizer and safetensors weights"
        ) from error
    # Weights that are not there are drawn at random, and would judge all the same.
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"{folder}: no weights for {missing[0]}; expected the whole classifier, with its head"
        )
    labels = list(model.config.id2label.values())
    names = {name.lower(): name for name in labels}
    label = next((names[wanted] for wanted in LABELS if wanted in names), None)
    if label is None or model.config.problem_type == "single_label_classification":
        raise UserError(
            f"{folder}: its labels are {', '.join(labels)}; audit.scorer needs a "
            f"multi-label classifier with a label {' or '.join(LABELS)}"
        )
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    classify = TextClassificationPipeline(
        model=model.eval(),
        tokenizer=tokenizer,
        device="cpu",
        top_k=None,
        function_to_apply="sigmoid",
        truncation=True,
        max_length=longest,
    )

    def score(texts: list[str]) -> list[float]:
        rows = classify(texts, batch_size=BATCH)
        return [next(one["score"] for one in row if one["label"] == label) for row in rows]

    return lambda texts: _filled(texts, score)


def _pickled(path: Path) -> Path | None:
    """A checkpoint that is a pickle: the path, or a file of a folder without safetensors weights."""
    if path.is_file():
        return path if path.suffix in PICKLES else None
    if any(path.glob("*.safetensors")):
        return None
    return next((file for file in sorted(path.glob("*")) if file.suffix in PICKLES), None)


def summarise(
    texts: Sequence[str],
    scores: np.ndarray,
    users: np.ndarray,
    threshold: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Mean and 95th percentile with user-clustered intervals, and the worst text, word for word.

    Args:
        texts: the N texts.
        scores: [N] toxicity.
        users: [N] whom each text was written for.
        threshold: score from which a text counts as toxic.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    p95 = percentile_of_draws(scores, 95, users, resamples, seed)
    worst = int(np.argmax(scores))
    return {
        "texts": len(texts),
        "mean": paired_bootstrap(scores, resamples, seed, clusters=users)._asdict(),
        "p95": interval(np.percentile(scores, 95), p95),
        "max": float(scores[worst]),
        "toxic": int((scores >= threshold).sum()),
        "toxic_share": float((scores >= threshold).mean()),
        "worst_text": texts[worst],
    }


def worst(before: np.ndarray, after: np.ndarray, count: int) -> np.ndarray:
    """Places of the texts [N] with the highest score before or after training, highest first.

    >>> worst(np.array([0.1, 0.9, 0.2]), np.array([0.3, 0.1, 0.2]), 2)
    array([1, 0])
    """
    return np.argsort(-np.maximum(before, after), kind="stable")[:count]
