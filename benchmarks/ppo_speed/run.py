"""Time a PPO step here and in TRL, and measure the peak memory of each.

In: nothing but the network on the first run, for the peers and their packages. Out, beside this
file or in --out: `results.csv`, a row for each timed step, and the tables in `README.md`; with
--profile also `profile.csv`, the parts of this project's step.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from shielded_recrl.errors import UserError
from shielded_recrl.files import atomic, write_text

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache"
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Program:
    """What runs.

    Attributes:
        name: in tables and after --only.
        script: beside this file.
        variant: handed to the script.
        env: names the requirements of an environment of its own; this Python without one.
        slow: measured in the first round only.
    """

    name: str
    script: str
    variant: str = ""
    env: str | None = None
    slow: bool = False


PROGRAMS = (
    Program("this project, shared critic", "ours.py", "shared"),
    Program("TRL PPO", "peer_trl_ppo.py", "lora", env="trl_ppo"),
    Program("TRL RLOO", "peer_trl_rloo.py", env="trl_rloo"),
    Program("this project, separate critic", "ours.py", "separate", slow=True),
    Program(
        "TRL PPO, value model trained in full", "peer_trl_ppo.py", "full", env="trl_ppo", slow=True
    ),
)
OURS, PEER = PROGRAMS[0].name, PROGRAMS[1].name
MODELS = ("tiny", "2M", "50M")
# Model, rounds, steps that warm up, steps that are timed.
SETTINGS = [("2M", 3, 2, 5), ("50M", 3, 1, 3)]
QUICK = [("tiny", 2, 1, 2)]
SPEED, MEMORY = {"2M": 3.0, "50M": 2.0}, 0.7


def main(argv: Sequence[str] | None = None) -> None:
    """Measure round by round, and write the results after each."""
    options = arguments(argv)
    results, profile = options.out / "results.csv", options.out / "profile.csv"
    if options.render:
        if not results.exists():
            raise UserError(f"{results}: no such file; measure first, without --render")
        return render(options.out)
    programs = [p for p in PROGRAMS if not options.only or p.name in options.only]
    for name in dict.fromkeys(p.env for p in programs if p.env):
        environment(name)
    rows: list[dict] = []
    for turn in range(max(rounds for _, rounds, _, _ in options.setting)):
        for model, rounds, warm_up, steps in options.setting:
            if turn >= rounds:
                continue
            racing = [p for p in programs if not p.slow or turn == 0]
            # Every other round backwards, so that no one always runs on the warmest machine.
            for program in racing[:: -1 if turn % 2 else 1]:
                found = measure(program, model, turn, warm_up, steps, options.threads)
                rows += timed_steps(found, turn, options.threads)
                said = f"{median(found['seconds']):.3f} s, {found['peak_mb']:.0f} MB"
                print(f"round {turn + 1}, {model}, {program.name}: {said}", file=sys.stderr)
        write_csv(results, rows)
    if options.profile:
        write_csv(profile, list(profiles(options)))
    render(options.out)
    print(f"wrote {results} and the tables of {options.out / 'README.md'}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = ", then ".join(" ".join(map(str, setting)) for setting in SETTINGS)
    parser.add_argument(
        "--setting",
        nargs=4,
        action="append",
        metavar=("MODEL", "ROUNDS", "WARM_UP", "STEPS"),
        help=f"repeatable; models: {', '.join(MODELS)}; default: {default}",
    )
    parser.add_argument("--threads", type=int, default=2, help="of each program")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of programs, as in tables")
    parser.add_argument("--profile", action="store_true", help="time the parts of our step as well")
    parser.add_argument("--quick", action="store_true", help="a tiny model; give --out")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--render", action="store_true", help="the tables of results.csv")
    options = parser.parse_args(argv)
    if options.quick and options.out == HERE:
        raise UserError("--quick: its numbers mean nothing; give --out DIR")
    unknown = set(options.only or ()) - {program.name for program in PROGRAMS}
    if unknown:
        names = "; ".join(program.name for program in PROGRAMS)
        raise UserError(f"--only {', '.join(sorted(unknown))}: expected some of: {names}")
    options.setting = [setting(*words) for words in options.setting or ()] or (
        QUICK if options.quick else SETTINGS
    )
    return options


def setting(model: str, *counts: str) -> tuple[str, int, int, int]:
    """A setting of the command line.

    Raises:
        UserError: the model is unknown, or a count is no positive whole number.
    """
    if model not in MODELS:
        raise UserError(f"--setting {model}: expected one of: {', '.join(MODELS)}")
    if not all(count.isdecimal() and int(count) for count in counts):
        raise UserError(f"--setting {model} {' '.join(counts)}: expected counts of at least 1")
    rounds, warm_up, steps = map(int, counts)
    return model, rounds, warm_up, steps


def environment(name: str) -> Path:
    """The Python of a peer's own environment, made where it is missing or out of date."""
    folder, wanted = CACHE / "env" / name, HERE / "requirements" / f"{name}.txt"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        print(f"making {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        write_text(stamp, wanted.read_text())
    return python


def measure(
    program: Program,
    model: str,
    seed: int,
    warm_up: int,
    steps: int,
    threads: int,
    profile: bool = False,
) -> dict:
    """One measurement in a process and a folder of its own.

    Raises:
        UserError: the program fails.
    """
    python = environment(program.env) if program.env else sys.executable
    with tempfile.TemporaryDirectory() as work:
        command = [python, HERE / program.script, "--variant", program.variant, "--model", model]
        command += [f"--seed={seed}", f"--warm-up={warm_up}", f"--steps={steps}"]
        command += [f"--threads={threads}", "--work", work, *(["--profile"] if profile else [])]
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            command, env=os.environ | settings, capture_output=True, text=True, check=False
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{program.name}, {model}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def timed_steps(found: dict, turn: int, threads: int) -> Iterator[dict]:
    """A row for each timed step of a measurement."""
    same = {
        key: value
        for key, value in found.items()
        if key not in ("seconds", "cpu_seconds", "peak_mb", "imported_mb", "parts")
    }
    times = zip(found["seconds"], found["cpu_seconds"], strict=True)
    for step, (wall, cpu) in enumerate(times, start=1):
        yield {
            "model": found["model"],
            "program": found["program"],
            "round": turn + 1,
            "step": step,
            "seconds": f"{wall:.4f}",
            "cpu_seconds": f"{cpu:.4f}",
            "peak_mb": f"{found['peak_mb']:.1f}",
            "imported_mb": f"{found['imported_mb']:.1f}",
            **same,
            "threads": threads,
            "cores": os.cpu_count(),
            "processor": processor(),
        }


def profiles(options: argparse.Namespace) -> Iterator[dict]:
    """Seconds of each part of our step, from processes of their own, as the clocks cost time."""
    for model, _, warm_up, steps in options.setting:
        for program in (p for p in PROGRAMS if p.env is None):
            found = measure(program, model, 0, warm_up, steps, options.threads, profile=True)
            parts = found["parts"]
            whole = sum(found["seconds"]) / len(found["seconds"])
            for part, seconds in (parts | {"rest": whole - sum(parts.values())}).items():
                row = {"model": model, "program": program.name, "part": part}
                yield row | {"seconds": f"{seconds:.4f}", "share": f"{seconds / whole:.4f}"}


def processor() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows that have the same keys."""
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of `write_csv`; none without a file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def render(folder: Path) -> None:
    """Write the tables into the README.md of the results."""
    path = folder / "README.md"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / "README.md", path)
    before, rest = path.read_text().split(BEGIN)
    steps, parts = read_csv(folder / "results.csv"), read_csv(folder / "profile.csv")
    tables = "\n".join([*markdown(steps), *profile_markdown(parts)])
    write_text(path, f"{before}{BEGIN}\n\n{tables}\n{END}{rest.partition(END)[2]}")


def summary(rows: list[dict[str, str]]) -> dict:
    """What the timed steps of one program and model come to."""
    seconds = [float(row["seconds"]) for row in rows]
    rounds: dict[str, list[float]] = {}
    for row, value in zip(rows, seconds, strict=True):
        rounds.setdefault(row["round"], []).append(value)
    peak = max(float(row["peak_mb"]) for row in rows)
    return {
        "seconds": median(seconds),
        "range": (min(seconds), max(seconds)),
        "rounds": {turn: median(values) for turn, values in rounds.items()},
        "cpu": median(float(row["cpu_seconds"]) for row in rows),
        "peak": peak,
        "own": peak - min(float(row["imported_mb"]) for row in rows),
        "parameters": [int(rows[0][key]) / 1e6 for key in ("frozen", "trainable")],
        "steps": len(rows),
    }


def beside(one: dict, other: dict) -> tuple[float, float, float]:
    """Seconds of one over those of another: of the medians, and the range by rounds of both."""
    both = one["rounds"].keys() & other["rounds"].keys()
    ratios = [one["rounds"][turn] / other["rounds"][turn] for turn in both]
    whole = one["seconds"] / other["seconds"]
    return whole, min(ratios, default=whole), max(ratios, default=whole)


def markdown(rows: list[dict[str, str]]) -> Iterator[str]:
    """A table and its goals for each model."""
    first = rows[0]
    yield (
        f"{first['processor']}, {first['cores']} cores, {first['threads']} threads, PyTorch "
        f"{first['torch']}, transformers {first['transformers']}, PEFT {first['peft']}.\n"
    )
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        known = {row["program"] for row in own}
        found = {
            program.name: summary([row for row in own if row["program"] == program.name])
            for program in PROGRAMS
            if program.name in known
        }
        yield f"### {model}\n"
        yield (
            "| program | s/step | range | beside this project | by round | CPU s/step "
            "| peak memory, MB | less imports, MB | parameters frozen + trained, M | steps |"
        )
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        for name, row in found.items():
            ratio, by_round = "", ""
            if OURS in found:
                whole, low, high = beside(row, found[OURS])
                ratio, by_round = f"{whole:.2f}", f"{low:.2f} to {high:.2f}"
            yield (
                f"| {name} | {row['seconds']:.3f} | {row['range'][0]:.3f} to {row['range'][1]:.3f} "
                f"| {ratio} | {by_round} | {row['cpu']:.3f} | {row['peak']:,.0f} "
                f"| {row['own']:,.0f} | {row['parameters'][0]:.2f} + {row['parameters'][1]:.2f} "
                f"| {row['steps']} |"
            )
        yield ""
        if OURS in found and PEER in found:
            yield from (f"- {line}" for line in goals(model, found[OURS], found[PEER]))
            yield ""


def goals(model: str, ours: dict, peer: dict) -> Iterator[str]:
    """This project beside TRL's PPO, in sentences."""
    speed, low, high = beside(peer, ours)
    met = ""
    if model in SPEED:
        verdict = "met" if speed >= SPEED[model] else "missed"
        met = f"; the goal, at least {SPEED[model]:.1f}, is {verdict}"
    yield f"{speed:.2f} times the speed of {PEER} ({low:.2f} to {high:.2f} by round){met}"
    memory = ours["peak"] / peer["peak"]
    if model in SPEED:
        verdict = "met" if memory <= MEMORY else "missed"
        met = f"; the goal, at most {MEMORY}, is {verdict}"
    own = ours["own"] / peer["own"]
    yield f"{memory:.2f} of its peak memory, {own:.2f} less what the imports take{met}"


def profile_markdown(rows: list[dict[str, str]]) -> Iterator[str]:
    """Where the time of this project's step goes."""
    if not rows:
        return
    parts = list(dict.fromkeys(row["part"] for row in rows))
    yield "### Where this project's step goes\n"
    yield f"| model | critic | {' | '.join(parts)} |"
    yield f"|---|---|{'--:|' * len(parts)}"
    for model, program in dict.fromkeys((row["model"], row["program"]) for row in rows):
        own = {
            row["part"]: f"{float(row['seconds']):.3f} ({float(row['share']):.0%})"
            for row in rows
            if (row["model"], row["program"]) == (model, program)
        }
        critic = program.partition(", ")[2].removesuffix(" critic")
        yield f"| {model} | {critic} | {' | '.join(own[part] for part in parts)} |"
    yield "\nSeconds of a step, with its share.\n"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"run.py: error: {error}")
