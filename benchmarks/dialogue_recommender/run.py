"""The recommender of dialogues on real ReDial, and what each part of it is worth.

In: folders of ReDial, GoEmotions and MovieLens files. Out, in --work: what every command writes; here:
`results.json` and `table.md`, films of the linked validation file beside the baselines, with each
kind of evidence left out, and stage 1 without emotions. Both stages have the shipped settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch

from shielded_recrl import markdown
from shielded_recrl.dialogue import annotate, emotions, fuse, prepare, recommend
from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.recommender.contexts import recommendation_samples
from shielded_recrl.dialogue.recommender.evaluation import evaluate, trained_system
from shielded_recrl.dialogue.recommender.fusion import EVIDENCE, Recommender
from shielded_recrl.dialogue.recommender.tables import cell
from shielded_recrl.dialogue.recommender.training import Knowledge, Schedule, fit
from shielded_recrl.dialogue.settings import FusionSettings, RecommendSettings
from shielded_recrl.files import read_json, write_json, write_text

HERE = Path(__file__).parent
TRAIN = ("test_data.jsonl.gz", "kepler_train_subset.jsonl.gz", "kepler_valid_subset.jsonl.gz")
TEST = ("valid_data_linked.jsonl.gz",)
# What is left out together.
GROUPS = {
    "co-occurrence": ("cooccurrence", "related"),
    "words": ("words", "attribute_words", "title_said"),
    "dialogues alike": ("dialogues",),
    "titles, categories, decades": (
        "titles_shared",
        "categories_shared",
        "decades_shared",
        "attributes",
    ),
    "popularity": ("popularity",),
    "learned vectors": (),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, train, evaluate, leave parts out, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with redial, ml25m, ...")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args(argv)
    data, work, seed = arguments.data, arguments.work, arguments.seed
    if work.exists() and any(work.iterdir()):
        parser.error(f"--work {work}: not empty; the numbers of a run are all of one run")
    tables, labels = work / "data", work / "emotion"
    plain, first, second = work / "no_emotions", work / "fusion", work / "recommender"
    shared = {"data": tables, "seed": seed}
    felt = shared | {"emotions": labels / "turns.parquet"}
    raw = {"raw": data / "redial", "genres": data / "ml25m" / "movies.csv"}
    steps: dict[str, Callable[[], None]] = {
        "prepare": lambda: prepare.main(**raw, out=tables, train=TRAIN, test=TEST),
        "emotions": lambda: emotions.main(goemotions=data / "goemotions", out=labels),
        "annotate": lambda: annotate.main(data=tables, model=labels, out=felt["emotions"]),
        "fuse": lambda: fuse.main(**felt, out=first),
        "fuse, no emotions": lambda: fuse.main(**shared, out=plain),
        "recommend": lambda: recommend.main(**felt, fusion=first, out=second),
        "left out": lambda: left_out(work, seed),
    }
    seconds = {name: cpu_seconds(step) for name, step in steps.items()}
    evaluation = read_json(second / "evaluation.json")
    kept = ("splits", "learned", "best_epoch", "history")
    results = {key: evaluation[key] for key in kept}
    results["stage1"] = {
        name: {key: report[key] for key in ("systems", "learned", "best_epoch", "history")}
        for name, report in (
            ("with emotions", read_json(first / "report.json")),
            ("without", read_json(plain / "report.json")),
        )
    }
    results |= {"left_out": read_json(work / "left_out.json"), "cpu_seconds": seconds, "seed": seed}
    write_json(HERE / "results.json", results)
    write_text(HERE / "table.md", f"{(second / 'evaluation.md').read_text()}\n{table(results)}")


def left_out(work: Path, seed: int) -> None:
    """New films of test: one model of stage 2 alone for each group left out, beside the whole."""
    dialogues = Dialogues.load(work / "data")
    knowledge = Knowledge.of(dialogues, FusionSettings())
    train, valid, test = (
        recommendation_samples(dialogues.split(name), {}) for name in ("train", "valid", "test")
    )
    settings, size = RecommendSettings(), (FusionSettings().dim, FusionSettings().dropout, seed)
    # From nothing, and so at the rate of stage 1.
    schedule = Schedule.of(settings)._replace(learning_rate=FusionSettings().learning_rate)
    weights = (settings.dislike_weight, settings.like_weight, settings.not_said_weight)
    systems = {}
    for name, kinds in {"nothing": None, **GROUPS}.items():
        model = Recommender.drawn(knowledge.catalogue, *size)
        silence(model, name, kinds)
        fit(model, knowledge, train, valid, lambda s: weights[s.liked], schedule, seed, name)
        systems[name] = trained_system(model, knowledge)
    write_json(
        work / "left_out.json", evaluate(systems, test, "nothing", settings.bootstrap)["new"]
    )


def silence(model: Recommender, name: str, kinds: Sequence[str] | None) -> None:
    """Keep kinds of evidence, or the vectors, at zero."""
    if name == "learned vectors":
        with torch.no_grad():
            for weights in (model.words, model.attributes, model.mentions.weight):
                weights.zero_().requires_grad_(False)
    elif kinds:
        kept = torch.tensor([float(kind not in kinds) for kind in EVIDENCE])
        with torch.no_grad():
            model.evidence.mul_(kept)
        model.evidence.register_hook(lambda gradient: gradient * kept)


def table(results: dict[str, Any]) -> str:
    """The README's tables beside the page of the recommender."""
    left = results["left_out"]
    leads = {name: lead["recall@10"] for name, lead in left["ahead_of"].items()}
    held_out = [
        (name, learned, cell(report["systems"][system]["recall@10"]), f"{loss:.4f}")
        for name, report in results["stage1"].items()
        for system, learned, loss in (
            ("fusion", f"epoch {report['best_epoch']}", lowest(report)),
            ("untrained", "untrained", report["history"][0]["valid_loss"]),
        )
    ]
    lines = [
        *markdown.table(
            ["left out", "recall@10, new films of test", "whole minus this"],
            (
                (name, cell(row["recall@10"]), cell(leads[name], "+") if name in leads else "")
                for name, row in left["systems"].items()
            ),
        ),
        "",
        *markdown.table(["stage 1, held-out films of valid", "", "recall@10", "loss"], held_out),
    ]
    return "\n".join(lines) + "\n"


def lowest(report: dict[str, Any]) -> float:
    """Loss of the best epoch."""
    return report["history"][report["best_epoch"]]["valid_loss"]


def cpu_seconds(step: Callable[[], None]) -> float:
    """CPU seconds that a step takes in this process."""
    begun = process_time()
    step()
    return round(process_time() - begun, 1)


if __name__ == "__main__":
    main()
