"""Stage 1, emotional semantic fusion: learn vectors of items and users from held-out films.

In: prepared dialogues, and emotions of their turns. Out: `model.safetensors` and `report.json`. Each
film of each train dialogue is held out once and predicted from the turns that do not name it. The
run stops here where nothing is learned, or too little: see `recommender.gate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from shielded_recrl.dialogue.settings import FusionSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import write_json


def main(
    *,
    data: Path,
    out: Path,
    seed: int,
    emotions: Path | None = None,
    settings: Annotated[FusionSettings, tyro.conf.arg(name="")] = FusionSettings(),  # noqa: B008
) -> None:
    """Learn vectors of items and users.

    Args:
        data: folder of prepared dialogues.
        out: folder to write model.safetensors and report.json to.
        seed: seed of initial weights, order and dropout.
        emotions: turns.parquet of `annotate`; None: every film named weighs as if neutral.
        settings: settings of stage 1.
    """
    from shielded_recrl.dialogue.corpus.dialogues import Dialogues
    from shielded_recrl.dialogue.recommender.contexts import entity_samples
    from shielded_recrl.dialogue.recommender.evaluation import (
        counted_systems,
        evaluate,
        trained_system,
    )
    from shielded_recrl.dialogue.recommender.files import Trained, digests, read_emotions, save
    from shielded_recrl.dialogue.recommender.fusion import Recommender
    from shielded_recrl.dialogue.recommender.gate import require_found
    from shielded_recrl.dialogue.recommender.tables import line
    from shielded_recrl.dialogue.recommender.training import Knowledge, Schedule, fit

    dialogues, felt = Dialogues.load(data), read_emotions(emotions)
    train, valid = (entity_samples(dialogues.split(name), felt) for name in ("train", "valid"))
    for name, samples in (("train", train), ("valid", valid)):
        if not samples:
            raise UserError(
                f"{data / 'mentions.parquet'}: no dialogue of the {name} split names a film; "
                "give more dialogues, or a larger dialogue.data.valid_share"
            )
    knowledge = Knowledge.of(dialogues, settings)
    size = settings.dim, settings.dropout, seed
    untrained, model = (Recommender.drawn(knowledge.catalogue, *size) for _ in range(2))
    # No film held out is a repeat.
    model.repetition.requires_grad_(False)
    trained = fit(
        model, knowledge, train, valid, lambda sample: 1.0, Schedule.of(settings), seed, "fuse"
    )
    systems = {
        "fusion": trained_system(model, knowledge),
        "untrained": trained_system(untrained, knowledge),
        **counted_systems(dialogues.split("train"), knowledge.catalogue),
    }
    found = evaluate(systems, valid, "fusion", settings.bootstrap)["new"]
    require_found(found, settings.min_recall)
    report = {
        **{name: found[name] for name in ("targets", "dialogues", "systems", "ahead_of")},
        "min_recall": settings.min_recall,
        "items": knowledge.catalogue.n_items,
        "words": len(knowledge.catalogue.vocabulary),
        "held_out": {"train": len(train), "valid": len(valid)},
        "learned": model.learned(),
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "emotions": emotions is not None,
    }
    inputs = digests(data, emotions)
    save(out / "model.safetensors", Trained(1, settings, inputs, trained.weights))
    write_json(out / "report.json", report | {"inputs": inputs})
    print(
        f"held-out films of valid, {found['targets']} of {found['dialogues']} dialogues, "
        f"{line(found['systems'], 'recall@10')}\n"
        f"wrote {out / 'model.safetensors'} and report.json, of epoch {trained.best_epoch}; "
        "next: python -m shielded_recrl.dialogue recommend"
    )
