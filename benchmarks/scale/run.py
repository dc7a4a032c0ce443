"""How CPU time and memory of every stage grow with the number of users, and where that leads.

    python benchmarks/scale/run.py            # 1,000 to 1,000,000 users, as far as the budget goes
    python benchmarks/scale/run.py --report   # table and figure of the results at hand

Every point is a process of its own, the stage's real command on one thread, in CPU seconds, so that
neighbours hardly count. A stage stops where its next size would take longer than the budget. Out:
results.json and table.md beside this file, docs/figures/scale.svg. Data: benchmarks/.cache/scale.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "benchmarks/.cache/scale"
RESULTS = HERE / "results.json"
SIZES = (10**3, 10**4, 10**5, 10**6)
FAR = 10**8
# Memory of a large cloud machine, in GB: what one job can have.
MACHINE_GB = 512
# What a job may have where this is measured.
HERE_GB = 16
TEXTS_PER_USER = 2


class Stage(NamedTuple):
    """What is measured.

    Attributes:
        unit: what is counted.
        words: size -> the command's words; makes what it needs on the way.
        sharded: whether `resources.shards` divides the work.
        after: the stage whose output at the same size it reads, where that may be missing.
    """

    unit: str
    words: Callable[[int], list[str]]
    sharded: bool = False
    after: str | None = None


def folder(size: int) -> Path:
    return CACHE / str(size)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", *map(str, words)]


def settings(value) -> list[str]:
    """Flags of a settings model, as words."""
    import shlex

    from shielded_recrl.settings import flags

    return shlex.split(flags(value))


def prompt() -> list[str]:
    from shielded_recrl.explainer.settings import PromptSettings

    return settings(PromptSettings())


def roles(protected: int = 256, heldout: int = 128) -> list[str]:
    from shielded_recrl.shield.settings import RoleSettings

    return settings(RoleSettings(protected_users=protected, heldout_users=heldout))


def prepare(size: int) -> list[str]:
    raw = folder(size) / "raw"
    if not (raw / "movies.csv").exists():
        subprocess.run([sys.executable, HERE / "world.py", raw, str(size)], check=True)
    words = ["--interactions", raw / "ratings.csv", "--metadata", raw / "movies.csv"]
    out = ["--out", folder(size) / "data", "--min-weight", 4, "--min-interactions", 5]
    return command("shielded_recrl.data", "prepare", "--dataset", "ml25m", *words, *out)


def train_ranker(size: int) -> list[str]:
    from shielded_recrl.ranker.settings import RankerSettings

    one_epoch = RankerSettings(
        loss="sampled_softmax", batch_size=128, max_epochs=1, evaluate_every=1
    )
    out = ["--out", folder(size) / "ranker", "--scratch", folder(size) / "scratch"]
    data = ["--data", folder(size) / "data", "--seed", 42]
    return command("shielded_recrl.ranker", "train", *data, *out, *settings(one_epoch))


def evaluate_ranker(size: int) -> list[str]:
    at = folder(size)
    model = ["--model", at / "ranker/model.safetensors", "--out", at / "ranker"]
    return command("shielded_recrl.ranker", "evaluate", "--data", at / "data", *model)


def lm(size: int) -> list[object]:
    """Flags of a stage that runs the LM: one base, trained on the smallest world, for all sizes."""
    base = folder(SIZES[0]) / "base"
    if not base.exists():
        from shielded_recrl.explainer.settings import PretrainSettings

        data = ["--data", folder(SIZES[0]) / "data", "--out", base, "--seed", 42]
        words = [*data, "--templates", ROOT / "resources/prompts", *prompt()]
        words += settings(PretrainSettings(steps=200))
        subprocess.run(command("shielded_recrl.explainer", "pretrain", *words), check=True)
    return [
        "--data",
        folder(size) / "data",
        "--templates",
        ROOT / "resources/prompts",
        "--base",
        base,
    ]


def readout(size: int) -> list[str]:
    from shielded_recrl.shield.settings import RankingSettings

    fit = RankingSettings(gamma=0.5, epochs=1, examples=size, validation_users=size)
    words = [*lm(size), "--ranker", folder(size) / "ranker/states.safetensors"]
    words += ["--out", folder(size) / "readout.safetensors", *prompt(), *settings(fit)]
    return command("shielded_recrl.shield", "readout", *words)


def bases(size: int) -> list[str]:
    words = [*lm(size), "--out", folder(size) / "bases.safetensors", *prompt()]
    return command("shielded_recrl.shield", "bases", *words, *roles(protected=size // 2))


def adapter(size: int) -> Path:
    """The adapter that training starts from."""
    out = folder(size) / "adapter"
    if not out.exists():
        _, _, *words = lm(size)
        words += ["--out", out, "--scope", "last_block"]
        subprocess.run(command("shielded_recrl.explainer", "init", *words), check=True)
    return out


def run_flags(size: int) -> list[object]:
    at = folder(size)
    named = ["--dataset", "ml25m", "--variant", "no_proj"]
    # The base is the same at all sizes, and so the read-out of the smallest serves.
    fitted = folder(SIZES[0]) / "readout.safetensors"
    states = ["--ranker", at / "ranker/states.safetensors", "--readout", fitted]
    return [*lm(size), *states, *named, *prompt(), "--shield.kind", "none"]


def train_policy(size: int) -> list[str]:
    at = folder(size)
    words = [*run_flags(size), "--adapter", adapter(size), "--out", at / "run"]
    words += ["--scratch", at / "scratch", "--steps", 4, "--snapshots", 1, *roles()]
    return command("shielded_recrl.rl", "train", *words)


def evaluate_policy(size: int) -> list[str]:
    users = size // 4
    words = [*run_flags(size), "--run", folder(size) / "run", "--users", users]
    words += ["--items-per-user", TEXTS_PER_USER, "--bootstrap", 200, "--merge", "fp32"]
    return command("shielded_recrl.rl", "evaluate", *words, *roles(heldout=users))


def probe(size: int) -> list[str]:
    at = folder(size)
    words = [
        *lm(size),
        "--ranker",
        at / "ranker/states.safetensors",
        "--adapter",
        at / "run/adapter",
    ]
    words += ["--rankings", at / "run/rankings.parquet", "--out", at / "probes.json"]
    words += ["--samples", size, *prompt(), *roles(heldout=size // 4)]
    return command("shielded_recrl.audit", "probe", *words)


def audit(size: int) -> list[str]:
    at = folder(size)
    words = ["--data", at / "data", "--explanations", at / "run/explanations.jsonl"]
    words += ["--rankings", at / "run/rankings.parquet", "--probes", at / "probes.json"]
    words += ["--out", at / "audit.json", "--dataset", "ml25m", "--variant", "no_proj"]
    return command("shielded_recrl.audit", "run", *words, "--seed", 42, "--bootstrap", 200)


STAGES = {
    "prepare": Stage("users", prepare),
    "train_ranker, an epoch": Stage("users", train_ranker),
    "evaluate_ranker": Stage("users", evaluate_ranker),
    "fit_readout": Stage("users", readout, sharded=True, after="evaluate_ranker"),
    "collect_bases": Stage("users", bases, sharded=True),
    "train_policy, 4 steps": Stage("users", train_policy, after="evaluate_ranker"),
    "evaluate_policy": Stage("users", evaluate_policy, sharded=True, after="evaluate_ranker"),
    "probe_policy": Stage("texts", probe, sharded=True, after="evaluate_policy"),
    "audit_policy": Stage("texts", audit, sharded=True, after="probe_policy"),
}


def measured(words: list[str], log: Path) -> dict[str, float]:
    """CPU seconds and peak GB of a command.

    Raises:
        SystemExit: it failed.
    """
    env = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(words, env=env, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(words)}: exit {process.returncode}; see {log}")
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 3),
    }


def too_much(points: dict[str, dict], size: int, budget: float) -> bool:
    """Whether a size would take more time than the budget, or more memory, by the growth so far."""

    def expected(key: str) -> float:
        slope, start = line([(int(n), point[key]) for n, point in points.items() if int(n) < size])
        return start + slope * size

    return len(points) > 1 and (expected("cpu_seconds") > budget or expected("peak_gb") > HERE_GB)


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Slope and start of y = start + slope x by the two largest x, neither below zero.

    The smallest sizes say what a process costs before it works; the largest say how it grows.
    """
    if len(points) == 1:
        return 0.0, points[0][1]
    (x0, y0), (x1, y1) = sorted(points)[-2:]
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    return slope, max(0.0, y1 - slope * x1)


def exponent(points: list[tuple[int, float]]) -> float:
    """Local growth exponent between the two largest sizes: 1 is linear."""
    (x0, y0), (x1, y1) = sorted(points)[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)


def measure(budget: float) -> None:
    """Measure what is not measured yet, one size after the other, and write after every point."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for size in SIZES:
        for name, stage in STAGES.items():
            points = results.setdefault(name, {})
            lacking = stage.after and str(size) not in results[stage.after]
            if str(size) in points or lacking or too_much(points, size, budget):
                continue
            words = stage.words(size)
            points[str(size)] = measured(words, folder(size) / f"{name.split(',')[0]}.log")
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
            print(f"{name}, {size:,}: {points[str(size)]}", flush=True)


def row(name: str, stage: Stage, points: dict[str, dict]) -> list[str]:
    """A row of the table: what was measured last, its growth, and what the far size would take."""
    sizes = sorted(map(int, points))
    seconds = [(n, points[str(n)]["cpu_seconds"]) for n in sizes]
    memory = [(n, points[str(n)]["peak_gb"]) for n in sizes]
    slope, start = line(seconds)
    grown, base = line(memory)
    hours = (start + slope * FAR) / 3600
    gb = base + grown * FAR
    # A shard takes an hour at the most, and its memory fits the machine.
    wanted = max(hours, gb / MACHINE_GB) if stage.sharded else 1
    shards = 2 ** max(0, math.ceil(math.log2(max(wanted, 1))))
    return [
        name,
        f"{sizes[-1]:,}",
        f"{seconds[-1][1]:,.0f} s, {memory[-1][1]:.2f} GB",
        f"{slope * 1e6:,.0f} s, {grown * 1e6:.2f} GB",
        f"{exponent(seconds):.2f}" if len(sizes) > 1 else "",
        f"{hours:,.1f} h, {gb:,.0f} GB",
        f"{shards:,}" if stage.sharded else "one job",
    ]


def report() -> None:
    """table.md and the figure."""
    import matplotlib.pyplot as plt

    from shielded_recrl.markdown import table

    results = json.loads(RESULTS.read_text())
    rows = [row(name, STAGES[name], points) for name, points in results.items() if points]
    heads = ("stage", "largest size", "measured there", "for a million more")
    heads += ("exponent", f"at 10^{round(math.log10(FAR))}", "shards of an hour")
    (HERE / "table.md").write_text("\n".join(table(heads, rows)) + "\n")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, points in results.items():
        sizes = sorted(map(int, points))
        for axis, key in zip(axes, ("cpu_seconds", "peak_gb"), strict=True):
            axis.plot(sizes, [points[str(n)][key] for n in sizes], marker="o", label=name)
    for axis, label in zip(axes, ("CPU seconds, one thread", "peak memory, GB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="users (texts)", title=label)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right")
    figure.savefig(ROOT / "docs/figures/scale.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=260, help="CPU seconds of a point")
    parser.add_argument("--report", action="store_true", help="only table and figure")
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    if not arguments.report:
        measure(arguments.budget)
    report()


if __name__ == "__main__":
    main()
