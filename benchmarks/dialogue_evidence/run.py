"""The dialogue branch on real ReDial and GoEmotions, and the figures that the docs cite.

    python benchmarks/dialogue_evidence/run.py --data FOLDER   # goes on where it was stopped
    python benchmarks/dialogue_evidence/run.py --report        # table.md of the files at hand

In: a folder with `redial`, `goemotions` and `ml25m` (for categories). Out, beside this file: reports at
their paths below results/dialogue, times.csv with the CPU seconds of every job, and table.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shielded_recrl.dialogue.comparison.contestants import BEST, RL, SUPERVISED, pair_name
from shielded_recrl.dialogue.comparison.text import judges
from shielded_recrl.dialogue.recommender.tables import BASELINE, ORDER, OURS, cell
from shielded_recrl.files import read_json, write_text
from shielded_recrl.markdown import table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = HERE / "redial.yaml"
TARGET = "results/dialogue/report/manifest.json"
# Below results/dialogue. Models, tables and sample dialogues are left out: the data are not ours to
# give away.
KEPT = (
    "report/comparison.md",
    "report/*.svg",
    "report/manifest.json",
    "recommender/evaluation.*",
    "critic/report.json",
    "emotion/report.json",
    "data/stats.json",
    "rl/seed-*/evaluation.json",
    "rl/seed-*/train.jsonl",
)
CUTOFFS = (1, 10, 50)

Document = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the branch, keep its reports, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("RECRL_SHARED_DATA"), help="folder of raw data"
    )
    parser.add_argument("--cores", default="2", help="as of snakemake")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "benchmarks/.cache/dialogue_evidence", help="of the run"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of what is kept")
    parser.add_argument("--changes", type=Path, nargs="*", default=[], help="configs laid over it")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    parser.add_argument("--report", action="store_true", help="only write the table anew")
    arguments = parser.parse_args(argv)
    if not arguments.report:
        if arguments.data is None:
            parser.error("--data or RECRL_SHARED_DATA: the folder of redial, goemotions and ml25m")
        run(arguments)
        if arguments.dry_run:
            return
        keep(arguments.work / "results", arguments.out)
    write_text(arguments.out / "table.md", "\n".join(tables(arguments.out)) + "\n")
    total = sum(float(row["cpu_seconds"]) for row in read_times(arguments.out))
    print(f"{arguments.out / 'table.md'}: written; {total:,.0f} CPU seconds in all jobs")


def run(arguments: argparse.Namespace) -> None:
    """Run Snakemake in a folder of its own, so that nobody's results are touched."""
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "config").exists():
        (work / "config").symlink_to(ROOT / "config")
    write_text(work / "paths.yaml", yaml.safe_dump({"dialogue": paths(arguments.data.resolve())}))
    configs = [CONFIG, work / "paths.yaml", *(path.resolve() for path in arguments.changes)]
    words = ["--snakefile", ROOT / "Snakefile", "--directory", work, "--cores", arguments.cores]
    words += ["--rerun-incomplete", *(["--dry-run"] * arguments.dry_run)]
    words += ["--configfile", *configs, "--", TARGET]
    own = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "snakemake", *map(str, words)],
        env=os.environ | {"PATH": own, "OMP_NUM_THREADS": "1"},
        check=True,
    )


def paths(data: Path) -> dict[str, Any]:
    """The keys of `dialogue` that say where the raw data are."""
    return {
        "data": {"source": str(data / "redial"), "genres": str(data / "ml25m/movies.csv")},
        "emotions": {"goemotions": str(data / "goemotions")},
    }


def keep(results: Path, out: Path) -> None:
    """Copy the reports in the place of those of an earlier run, and write times.csv."""
    branch = results / "dialogue"
    for pattern in KEPT:
        for path in out.glob(pattern):
            path.unlink()
        for path in branch.glob(pattern):
            (out / path.relative_to(branch)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, out / path.relative_to(branch))
    with (out / "times.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["job", "cpu_seconds", "peak_mb"])
        writer.writerows(times(results / "benchmarks/dialogue"))


def times(benchmarks: Path) -> Iterator[tuple[str, str, str]]:
    """CPU seconds and peak memory of every job, by name."""
    for path in sorted(benchmarks.rglob("*.tsv")):
        with path.open(encoding="utf-8") as stream:
            *_, last = csv.DictReader(stream, delimiter="\t")
        name = path.relative_to(benchmarks).with_suffix("").as_posix()
        yield name, last["cpu_time"], last["max_rss"]


def read_times(out: Path) -> list[dict[str, str]]:
    """Rows of times.csv."""
    with (out / "times.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def tables(out: Path) -> list[str]:
    """Lines of table.md, of the files that were kept."""
    found = [read_json(path) for path in out.glob("rl/seed-*/evaluation.json")]
    evaluations = sorted(found, key=lambda evaluation: evaluation["seed"])
    sections: dict[str, list[str]] = {
        "Dialogues": splits(read_json(out / "data/stats.json")),
        "Emotions, test comments": emotions(read_json(out / "emotion/report.json")["test"]),
        "New films, test dialogues": films(
            read_json(out / "recommender/evaluation.json")["splits"]["test"]["new"]
        ),
        "Gate of the critic, held-out dialogues": gate(read_json(out / "critic/report.json")),
        "RL − supervised, overall score": by_judge(evaluations, pair_name(RL, SUPERVISED)),
        "RL − best of N": by_judge(evaluations, pair_name(RL, BEST)),
        "The policy": policies(evaluations),
        "CPU": cpu(read_times(out)),
    }
    lines = ["# The dialogue branch on ReDial and GoEmotions", ""]
    lines += ["Made by `run.py`. Means with 95% bootstrap intervals over dialogues (or comments)."]
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", *rows]
    return lines


def splits(stats: Document) -> list[str]:
    """What was read and kept out, of data/stats.json."""
    names = ("dialogues", "turns", "mentions", "repeats", "liked", "disliked", "not_said")
    rows = [
        [split, *(f"{counts[name]:,}" for name in names)]
        for split, counts in stats["splits"].items()
    ]
    kept_out = [
        f"{count:,} {reason} ({file})"
        for file, counts in stats["kept_out"].items()
        for reason, count in counts.items()
    ]
    return [*table(["split", *names], rows), "", f"Kept out: {', '.join(kept_out) or 'none'}."]


def emotions(test: Document) -> list[str]:
    """Accuracy of the emotion classifier beside lexicon and commonest emotion."""
    rows = [
        [name, cell(test[name]["accuracy"]), cell(test[name]["macro_f1"])]
        for name in ("classifier", "lexicon", "majority")
    ]
    return table(["", "accuracy", "macro F1"], rows)


def films(new: Document) -> list[str]:
    """Recall of new films beside the baselines."""
    metrics = [f"recall@{k}" for k in CUTOFFS]
    rows = [
        [name, *(cell(new["systems"][name][metric]) for metric in metrics)]
        for name in ORDER
        if name in new["systems"]
    ]
    ahead = new["ahead_of"][BASELINE]
    rows.append([f"{OURS} − {BASELINE}", *(cell(ahead[metric], "+") for metric in metrics)])
    counted = f"{new['targets']:,} targets of {new['dialogues']:,} dialogues"
    return [*table([counted, *metrics], rows)]


def gate(report: Document) -> list[str]:
    """What the critic learned, by head and by fault."""
    heads = [
        [head, f"{row['mse']:.4f}", f"{row['mse_mean']:.4f}", cell(row["gain"], "+")]
        for head, row in report["heads"].items()
    ]
    faults = [
        [fault, f"{row['pairs']:,}", cell(row["share"])]
        for fault, row in report["corruptions"].items()
    ]
    return [
        *table(["head", "squared error", "of the mean", "gain, to be above 0"], heads),
        "",
        *table(["fault", "pairs", "person's response above, to be more than 1/2"], faults),
    ]


def by_judge(evaluations: Sequence[Document], pair: str) -> list[str]:
    """A pair's difference in the overall score: a judge a row, a training a column."""

    def of(judge: str) -> Callable[[Document], str]:
        return lambda found: cell(found["comparisons"][pair]["scores"][judge]["overall"], "+")

    header = ["judge", *(f"seed {found['seed']}" for found in evaluations)]
    rows = [[judge, *map(of(judge), evaluations)] for judge in judges(evaluations[0])]
    return table(header, rows)


def policies(evaluations: Sequence[Document]) -> list[str]:
    """How far the weights and the texts of the policy are from those it began with."""
    rows = []
    for found in evaluations:
        distance, recommended = found["distance"], found["recommendations"]
        rows.append(
            [
                found["seed"],
                f"{distance['moved']} of {distance['layers']}",
                f"{distance['relative']:.1%}",
                cell(found["kl"]["rl"]["per_token"]),
                cell(recommended["before"]["recall@10"]),
                cell(recommended["after"]["recall@10"]),
            ]
        )
    header = ["seed", "layers moved", "distance of weights", "KL, nats a token"]
    return table([*header, "recall@10 before", "after"], rows)


def cpu(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """CPU seconds and peak memory of every job."""
    cells = [
        [row["job"], f"{float(row['cpu_seconds']):,.0f}", f"{float(row['peak_mb']):,.0f}"]
        for row in rows
    ]
    total = sum(float(row["cpu_seconds"]) for row in rows)
    return table(["job", "CPU seconds", "peak MB"], [*cells, ["all", f"{total:,.0f}", ""]])


if __name__ == "__main__":
    main()
