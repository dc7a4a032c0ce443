"""A recommender's file, and the emotions it is given.

In, out: `model.safetensors`, sealed, with the weights of stage 1 or 2 and, as metadata, the settings
of stage 1 and the digest of the dialogues that were counted. The counts themselves are made anew
from these dialogues.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shielded_recrl.dialogue.corpus.dialogues import SCHEMAS
from shielded_recrl.dialogue.emotion.turns import load_emotions
from shielded_recrl.dialogue.recommender.contexts import Emotions
from shielded_recrl.dialogue.recommender.fusion import Recommender
from shielded_recrl.dialogue.recommender.items import Catalogue
from shielded_recrl.dialogue.settings import FusionSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import intact, sealed, sha256


@dataclass(frozen=True)
class Trained:
    """What a model file holds.

    Attributes:
        stage: 1 or 2.
        settings: of stage 1.
        inputs: digests by table of what it was trained on.
        weights: by name.
    """

    stage: int
    settings: FusionSettings
    inputs: dict[str, str]
    weights: dict[str, Tensor]


def digests(data: Path, emotions: Path | None) -> dict[str, str]:
    """Digests of the tables that both stages read."""
    found = {name: sha256(Path(data) / f"{name}.parquet") for name in sorted(SCHEMAS)}
    return found if emotions is None else found | {"emotions": sha256(emotions)}


def save(path: Path, trained: Trained) -> None:
    """Write a model file."""
    about = {
        "stage": trained.stage,
        "settings": trained.settings.model_dump(),
        "inputs": trained.inputs,
    }
    with sealed(path) as partial:
        save_file(trained.weights, partial, {"recommender": json.dumps(about, sort_keys=True)})


def load(path: Path) -> Trained:
    """Read a model file.

    Raises:
        UserError: the file is missing, damaged, or not of this kind.
    """
    path = Path(path)
    again = "make it with `python -m shielded_recrl.dialogue fuse`"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {again}")
    try:
        with safe_open(intact(path), "pt") as file:
            about = json.loads((file.metadata() or {})["recommender"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = FusionSettings(**about["settings"])
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError("not all weights are numbers")
        return Trained(int(about["stage"]), settings, dict(about["inputs"]), weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); {again}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a model of this recommender; {again}") from error


def rebuilt(path: Path, catalogue: Catalogue) -> tuple[Recommender, Trained]:
    """The model of a file over a catalogue, in evaluation mode.

    Raises:
        UserError: as `load`; or its weights are not those of this catalogue.
    """
    trained = load(path)
    with torch.random.fork_rng(devices=[]):
        model = Recommender(catalogue, trained.settings.dim, trained.settings.dropout)
    try:
        model.load_state_dict(trained.weights)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights do not fit these dialogues; run "
            "`python -m shielded_recrl.dialogue fuse` again"
        ) from error
    return model.eval(), trained


def read_emotions(path: Path | None) -> Emotions:
    """Emotions of turns; none where no file is named, so that every mention counts as neutral.

    Raises:
        UserError: the file is missing or damaged.
    """
    if path is None:
        return {}
    return load_emotions(path)
