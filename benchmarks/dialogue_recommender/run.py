"""The recommender of dialogues on real ReDial, and what each part of it is worth.

In: folders of ReDial, GoEmotions and MovieLens files; what lies in --work already is not made again.
Out: `results.json` and `table.md` here: films of the linked validation file beside the baselines,
with each kind of evidence left out, and stage 1 without emotions.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shielded_recrl.dialogue import annotate, emotions, fuse, prepare, recommend
from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.recommender.contexts import recommendation_samples
from shielded_recrl.dialogue.recommender.evaluation import evaluate, trained_system
from shielded_recrl.dialogue.recommender.fusion import EVIDENCE, Recommender
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
METRICS = ("recall@1", "recall@10", "recall@50", "ndcg@10", "mrr@10", "recall_true@10", "auc")


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, train, evaluate, leave parts out, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with redial, ml25m, ...")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args(argv)
    data, work, seed = arguments.data, arguments.work, arguments.seed
    seconds: dict[str, float] = read_json(work / "cpu.json") if (work / "cpu.json").exists() else {}

    def once(name: str, made: Path, *steps: Callable[[], None]) -> None:
        """Do what is not done yet, and note its CPU seconds."""
        if not made.exists():
            begun = cpu_seconds()
            for step in steps:
                step()
            seconds[name] = round(cpu_seconds() - begun, 1)
            write_json(work / "cpu.json", seconds)

    genres, tables = data / "ml25m" / "movies.csv", work / "data"
    names = {"train": TRAIN, "test": TEST, "genres": genres}
    felt = work / "emotion" / "turns.parquet"
    once(
        "prepare",
        tables / "stats.json",
        lambda: prepare.main(raw=data / "redial", out=tables, **names),
    )
    once(
        "emotions",
        felt,
        lambda: emotions.main(goemotions=data / "goemotions", out=felt.parent),
        lambda: annotate.main(data=tables, model=felt.parent, out=felt),
    )
    once("left_out", work / "left_out.json", lambda: left_out(work, seed))
    shared = {"data": tables, "seed": seed}
    plain, first, second = work / "no_emotions", work / "fusion", work / "recommender"
    once("no_emotions", plain / "report.json", partial(fuse.main, out=plain, **shared))
    shared["emotions"] = felt
    once("fuse", first / "report.json", partial(fuse.main, out=first, **shared))
    once(
        "recommend",
        second / "evaluation.json",
        partial(
            recommend.main,
            fusion=first,
            out=second,
            settings=RecommendSettings(epochs=4),
            **shared,
        ),
    )
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
    write_text(HERE / "table.md", table(results))


def left_out(work: Path, seed: int) -> None:
    """New films of test: one model of stage 2 alone for each group left out, beside the whole."""
    dialogues = Dialogues.load(work / "data")
    knowledge = Knowledge.of(dialogues, FusionSettings())
    train, valid, test = (
        recommendation_samples(dialogues.split(name), {}) for name in ("train", "valid", "test")
    )
    # From nothing: at the rate of stage 1 halved.
    schedule = Schedule.of(RecommendSettings(epochs=2, learning_rate=5e-3))
    weights = (1.0, 2.0, 0.5)
    systems = {}
    for name, kinds in {"nothing": None, **GROUPS}.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Recommender(knowledge.catalogue, FusionSettings().dim, FusionSettings().dropout)
        silence(model, name, kinds)
        fit(model, knowledge, train, valid, lambda s: weights[s.liked], schedule, seed, name)
        systems[name] = trained_system(model, knowledge)
    write_json(work / "left_out.json", evaluate(systems, test, "nothing", 1000)["new"])


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
    """The README's tables."""
    lines = []
    for group in ("new", "all", "repeats"):
        test = results["splits"]["test"][group]
        lines += [
            f"{group}: {test['targets']:,} targets of {test['dialogues']:,} dialogues",
            "",
            "| system | " + " | ".join(METRICS) + " |",
            "|---|" + "---|" * len(METRICS),
        ]
        rows = {name: test["systems"][name] for name in sorted(test["systems"])}
        for name, row in rows.items():
            lines.append(f"| {name} | " + " | ".join(cell(row.get(m)) for m in METRICS) + " |")
        ahead = test["ahead_of"]["cooccurrence"]
        lines.append(
            "| recommender - co-occurrence | "
            + " | ".join(cell(ahead.get(m), "+") for m in METRICS)
            + " |"
        )
        lines.append("")
    lines += ["| left out | recall@10 | whole minus this |", "|---|---|---|"]
    for name, row in results["left_out"]["systems"].items():
        ahead = results["left_out"]["ahead_of"].get(name, {}).get("recall@10")
        lines.append(f"| {name} | {cell(row['recall@10'])} | {cell(ahead, '+')} |")
    lines += ["", "| stage 1, held-out films of valid | recall@10 | best loss |", "|---|---|---|"]
    for name, report in results["stage1"].items():
        loss = report["history"][report["best_epoch"]]["valid_loss"]
        recall = cell(report["systems"]["fusion"]["recall@10"])
        lines.append(f"| {name} | {recall} | {loss:.4f} |")
    return "\n".join(lines) + "\n"


def cell(value: dict[str, float] | None, sign: str = "") -> str:
    """A mean with its interval."""
    if value is None:
        return ""
    mean, low, high = (f"{value[key]:{sign}.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def cpu_seconds() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
