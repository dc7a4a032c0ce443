"""Stage 2, emotion-aware recommendation: learn which film the recommender names next.

In: prepared dialogues, emotions of their turns, and stage 1. Out: `model.safetensors`;
`evaluation.json` and, of its test split, the page `evaluation.md`; `recommendations.parquet`
(dialogue, turn, position, item): ten new films for each turn of the recommender, which the response
LM fills its slots from.

The loss weighs a film by what the seeker said of it in the questionnaire after the dialogue: more
if it was liked, less if that was not said. The answers are labels, never inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from shielded_recrl.dialogue.settings import RecommendSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import SEAL, sealed, write_json, write_text


def main(
    *,
    data: Path,
    fusion: Path,
    out: Path,
    seed: int,
    emotions: Path | None = None,
    settings: Annotated[RecommendSettings, tyro.conf.arg(name="")] = RecommendSettings(),  # noqa: B008
) -> None:
    """Train the recommender, evaluate it, and write its recommendations.

    Args:
        data: folder of prepared dialogues.
        fusion: folder of stage 1.
        out: folder to write model.safetensors, evaluation.json and .md, and recommendations.parquet to.
        seed: seed of order and dropout.
        emotions: turns.parquet of `annotate`, as stage 1 was given it.
        settings: settings of stage 2.
    """
    import polars as pl

    from shielded_recrl.dialogue.corpus.dialogues import RECOMMENDATIONS, Dialogues
    from shielded_recrl.dialogue.recommender.contexts import recommendation_samples
    from shielded_recrl.dialogue.recommender.evaluation import (
        counted_systems,
        evaluate,
        recommendations,
        trained_system,
    )
    from shielded_recrl.dialogue.recommender.files import (
        Trained,
        digests,
        load,
        read_emotions,
        rebuilt,
        save,
    )
    from shielded_recrl.dialogue.recommender.tables import line, page
    from shielded_recrl.dialogue.recommender.training import Knowledge, Schedule, fit

    dialogues, felt = Dialogues.load(data), read_emotions(emotions)
    path = fusion / "model.safetensors"
    first, inputs = load(path), digests(data, emotions)
    if first.stage != 1 or first.inputs != inputs:
        raise UserError(
            f"{path}: not stage 1 of these dialogues and emotions; run "
            "`python -m shielded_recrl.dialogue fuse` on them"
        )
    knowledge = Knowledge.of(dialogues, first.settings)
    samples = {
        name: recommendation_samples(dialogues.split(name), felt)
        for name in ("train", "valid", "test")
    }
    for name, found in samples.items():
        if not found:
            raise UserError(
                f"{data / 'mentions.parquet'}: in the {name} split no recommender names a film "
                "after another turn; give more dialogues"
            )
    start, model = rebuilt(path, knowledge.catalogue)[0], rebuilt(path, knowledge.catalogue)[0]
    weights = (settings.dislike_weight, settings.like_weight, settings.not_said_weight)
    trained = fit(
        model,
        knowledge,
        samples["train"],
        samples["valid"],
        lambda sample: weights[sample.liked],
        Schedule.of(settings),
        seed,
        "recommend",
    )
    ours, train = trained_system(model, knowledge), dialogues.split("train")
    report = {
        "candidates": knowledge.catalogue.n_items,
        "splits": {
            name: evaluate(
                {
                    "recommender": ours,
                    "stage1": trained_system(start, knowledge),
                    # What the model is served with counts for the baselines too.
                    **counted_systems(known, knowledge.catalogue),
                },
                samples[name],
                "recommender",
                settings.bootstrap,
            )
            for name, known in (("valid", train), ("test", [*train, *dialogues.split("valid")]))
        },
        "learned": model.learned(),
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "emotions": emotions is not None,
        "inputs": inputs,
    }
    rows = recommendations(ours, dialogues.all, felt)
    with sealed(out / "recommendations.parquet") as partial:
        table = pl.DataFrame(rows, schema=RECOMMENDATIONS, orient="row")
        table.write_parquet(partial, metadata=SEAL)
    save(out / "model.safetensors", Trained(2, first.settings, inputs, trained.weights))
    write_json(out / "evaluation.json", report)
    test = report["splits"]["test"]
    write_text(out / "evaluation.md", page(test, knowledge.catalogue.n_items))
    for name, group in test.items():
        print(f"test, {name}, {group['targets']} targets, {line(group['systems'], 'recall@10')}")
    print(
        f"wrote {out / 'recommendations.parquet'}, model.safetensors, evaluation.json and .md; "
        "next: python -m shielded_recrl.dialogue pretrain"
    )
