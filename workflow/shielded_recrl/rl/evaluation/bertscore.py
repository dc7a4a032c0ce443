"""BERTScore of explanations (Zhang et al. 2020), only where bert-score is installed and a folder with
a model is given.

In: texts, references, a local model. Out: F in percent. An empty text scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shielded_recrl.errors import UserError

# bert-score cuts at the tokenizer's own bound; some tokenizers have none and say 1e30.
MAX_TOKENS = 1 << 20
# Nothing is fetched, and no code of the folder is run.
LOCAL = {"local_files_only": True, "trust_remote_code": False}


class BERTScoreModel(NamedTuple):
    """What BERTScore is computed with: a local folder in transformers format, and the layer."""

    folder: Path
    layer: int


def bertscore(
    texts: Sequence[str], references: Sequence[Sequence[str]], model: BERTScoreModel
) -> np.ndarray:
    """BERTScore F [n] of n texts, in percent: for each the best reference's, no idf, no rescaling.

    bert-score 0.3.13 runs with transformers 5, but for empty texts: those score 0 here, as they do
    there with transformers 4.

    Raises:
        UserError: see `check_bertscore`.
    """
    _check_tokenizer(model)
    from bert_score import score

    values = np.zeros(len(texts))
    filled = [place for place, text in enumerate(texts) if text.strip()]
    if filled:
        found = score(
            [texts[place] for place in filled],
            [[text for text in references[place] if text.strip()] for place in filled],
            model_type=str(model.folder),
            num_layers=model.layer,
        )
        values[filled] = 100 * found[2].double().numpy()
    return values


def check_bertscore(model: BERTScoreModel) -> None:
    """Load what BERTScore is computed with once, so that a bad folder is found before it is needed.

    Raises:
        UserError: bert-score is not installed, or the folder has no model, one with fewer layers, or
            a tokenizer without a longest text.
    """
    _check_tokenizer(model)
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        layers = AutoModel.from_pretrained(
            model.folder, use_safetensors=True, **LOCAL
        ).config.num_hidden_layers
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _no("model", model.folder, error) from error
    if model.layer > layers:
        raise UserError(
            f"bertscore_layer is {model.layer}, but the model in {model.folder} has {layers} "
            "layers; lower it"
        )


def _check_tokenizer(model: BERTScoreModel) -> None:
    if find_spec("bert_score") is None:
        raise UserError("BERTScore needs the package bert-score; pip install bert-score==0.3.13")
    # A name that is no folder would be looked for on the hub, whatever transformers is told.
    if not (model.folder / "config.json").is_file():
        raise _no("tokenizer", model.folder, "config.json is missing")
    from transformers import AutoTokenizer

    try:
        longest = AutoTokenizer.from_pretrained(model.folder, **LOCAL).model_max_length
    except (OSError, ValueError) as error:
        raise _no("tokenizer", model.folder, error) from error
    if longest > MAX_TOKENS:
        raise UserError(
            f"{model.folder}/tokenizer_config.json: no model_max_length; add it (512 for RoBERTa)"
        )


def _no(part: str, folder: Path, reason: object) -> UserError:
    return UserError(
        f"{folder}: no {part} in it ({' '.join(str(reason).split())[:100]}); name a folder with a "
        "model in transformers format"
    )
