"""Measure what each mode of serving a request costs, and what the shield adds to a training step.

In: nothing; the models are random, of the shapes named in serving.py. Out, beside this file or in
--out: `results.json` with every measurement, `results.svg`, and the tables in `README.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import matplotlib
import serving
import torch
import training
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from shielded_recrl.errors import UserError
from shielded_recrl.files import atomic, read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"
GOAL = 0.03
SETTINGS = [
    ("embedded", "fp32", 1, 42),
    ("embedded", "fp32", 8, 24),
    ("110M", "fp32", 1, 5),
    ("110M", "bf16", 1, 5),
]
TRAINING = [("embedded", 45), ("110M", 8)]
COLOURS = {"ranking": "C0", "switching": "C3", "reading": "C1", "decoding": "0.75"}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure setting by setting, and write the results after each."""
    options = arguments(argv)
    path = options.out / "results.json"
    if options.render:
        if not path.exists():
            raise UserError(f"{path}: no such file; measure first, without --render")
        return render(read_json(path), options.out)
    results = {"machine": machine(options.threads), "serving": [], "training": []}
    if path.exists() and set(options.part) != set(PARTS):
        results = read_json(path)
    with threads(options.threads):
        for part in (part for part in PARTS if part in options.part):
            PARTS[part](results, options)
    print(f"wrote {path}, results.svg and the tables of README.md")


def measure_serving(results: dict, options: argparse.Namespace) -> None:
    """Time the requests of every setting asked for, in place of what was known of it."""
    for name, precision, batch, rounds in options.setting:
        shape = serving.SHAPES[name]
        checks, rows = serving.measure(shape, precision, batch, rounds)
        about = {"model": name, "precision": precision, "batch": batch}
        tokens = [shape.prefix, shape.request, shape.answer]
        found = {**about, "tokens": tokens, **checks, "runs": rows}
        places = [
            place for place, old in enumerate(results["serving"]) if about.items() <= old.items()
        ]
        if places:
            results["serving"][places[0]] = found
        else:
            results["serving"].append(found)
        save(results, options.out)


def measure_training(results: dict, options: argparse.Namespace) -> None:
    """Time the training steps of every model."""
    results["training"] = []
    for name, rounds in options.training:
        job = training.measure(training.JOBS[name], rounds)
        results["training"].append({"model": name, **job})
        save(results, options.out)


def measure_memory(results: dict, options: argparse.Namespace) -> None:
    """Measure the peak memory of the settings asked for whose requests were timed."""
    asked = [(name, precision, batch) for name, precision, batch, _ in options.setting]
    for setting in results["serving"]:
        if (setting["model"], setting["precision"], setting["batch"]) not in asked:
            continue
        for mode, peak in peak_memory(setting, options.threads).items():
            setting["modes"][mode]["peak_bytes"] = peak
        save(results, options.out)


PARTS = {"serving": measure_serving, "training": measure_training, "memory": measure_memory}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--setting",
        nargs=4,
        action="append",
        metavar=("MODEL", "PRECISION", "BATCH", "ROUNDS"),
        help=f"requests to time; repeatable; default: {_written(SETTINGS)}",
    )
    parser.add_argument(
        "--training",
        nargs=2,
        action="append",
        metavar=("MODEL", "ROUNDS"),
        help=f"training steps to time; repeatable; default: {_written(TRAINING)}",
    )
    parser.add_argument(
        "--part",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="measure some of it again, and keep the rest of results.json; default: all",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny model, in seconds")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--render", action="store_true", help="tables and chart of results.json")
    options = parser.parse_args(argv)
    if options.quick and options.out == HERE:
        raise UserError("--quick: its numbers mean nothing; give --out DIR")
    default = [("tiny", "fp32", 2, 3)] if options.quick else SETTINGS
    options.setting = [
        (
            _known(name, serving.SHAPES, "--setting"),
            _known(precision, serving.PRECISIONS, "--setting"),
            _count(batch, "--setting"),
            _count(rounds, "--setting", least=2),
        )
        for name, precision, batch, rounds in options.setting or default
    ]
    options.training = [
        (_known(name, training.JOBS, "--training"), _count(rounds, "--training", least=2))
        for name, rounds in options.training or ([("tiny", 3)] if options.quick else TRAINING)
    ]
    return options


def _written(rows: list[tuple]) -> str:
    return ", ".join(" ".join(map(str, row)) for row in rows)


def _known(name: str, known: dict, option: str) -> str:
    if name not in known:
        raise UserError(f"{option} {name}: expected one of {', '.join(known)}")
    return name


def _count(text: str | int, option: str, least: int = 1) -> int:
    if not str(text).isdigit() or int(text) < least:
        raise UserError(f"{option} {text}: expected a number from {least}")
    return int(text)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of PyTorch inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(threads: int) -> dict:
    """What the numbers were measured on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def processor() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory(setting: dict, threads: int) -> dict[str, int]:
    """Mode -> bytes that a process of its own takes to serve by it.

    Raises:
        UserError: a process fails.
    """
    command = [sys.executable, HERE / "serving.py", setting["model"], setting["precision"]]
    command += [str(setting["batch"]), f"--threads={threads}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"memory, {setting['model']}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def save(results: dict, out: Path) -> None:
    """All measurements so far."""
    write_json(out / "results.json", results)
    render(results, out)


def render(results: dict, out: Path) -> None:
    """Write the tables into README.md, and the chart."""
    path = out / "README.md"
    if not path.exists():
        shutil.copy(HERE / "README.md", path)
    before, rest = path.read_text().split(BEGIN)
    tables = "\n".join(markdown(results))
    write_text(path, f"{before}{BEGIN}\n\n{tables}\n{END}{rest.partition(END)[2]}")
    chart(results, out / "results.svg")


def modes(setting: dict) -> list[dict]:
    """Medians of each mode, and its ratios to the base alone."""
    by_mode = {
        mode: sorted((row for row in setting["runs"] if row["mode"] == mode), key=_round)
        for mode in serving.MODES
        if mode in setting["modes"]
    }
    base = by_mode["base"]
    return [
        {
            "mode": mode,
            "phases": {
                phase: median(row["cpu"][phase] for row in rows) for phase in serving.PHASES
            },
            "cpu": median(total(row, "cpu") for row in rows),
            "ratio": ratio(rows, base, "cpu"),
            "spread": spread(
                [total(a, "cpu") / total(b, "cpu") for a, b in zip(rows, base, strict=True)]
            ),
            "wall": median(total(row, "wall") for row in rows),
            "wall_ratio": ratio(rows, base, "wall"),
            **setting["modes"][mode],
        }
        for mode, rows in by_mode.items()
    ]


def _round(row: dict) -> int:
    return row["round"]


def total(row: dict, clock: str) -> float:
    """Seconds of a whole request."""
    return sum(row[clock].values())


def ratio(rows: list[dict], base: list[dict], clock: str) -> float:
    """Median of a mode's totals over the median of the base's."""
    return median(total(row, clock) for row in rows) / median(total(row, clock) for row in base)


def spread(values: list[float]) -> tuple[float, float]:
    """The quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def overheads(job: dict) -> list[dict]:
    """What each variant of the shield adds to an update and to a whole step of PPO.

    `hooks` is the time inside the shield's hooks as a share of an update without it; `added` is
    the ratio of the medians with and without, less one, with the quartiles of the same by round.
    """
    by_variant = {
        name: sorted((row for row in job["updates"] if row["variant"] == name), key=_round)
        for name in training.VARIANTS
    }
    plain = by_variant["without"]
    update = median(row["cpu"] for row in plain)
    epochs = job["job"]["epochs"]
    whole = median(job["rollouts"]) + epochs * update
    return [
        {
            "variant": name,
            "cpu": median(row["cpu"] for row in rows),
            "hook_seconds": median(row["hooks"] for row in rows),
            "hooks": median(row["hooks"] for row in rows) / update,
            "hooks_spread": spread([row["hooks"] / update for row in rows]),
            "added": median(row["cpu"] for row in rows) / update - 1,
            "added_spread": spread(
                [a["cpu"] / b["cpu"] - 1 for a, b in zip(rows, plain, strict=True)]
            ),
            "whole": epochs * median(row["hooks"] for row in rows) / whole,
        }
        for name, rows in by_variant.items()
    ]


def markdown(results: dict) -> Iterator[str]:
    """The tables."""
    about = results["machine"]
    yield "![CPU time of a request in each mode, beside the base alone](results.svg)\n"
    yield (
        f"{about['processor']}, {about['cores']} cores, {about['threads']} thread(s), "
        f"PyTorch {about['torch']}, transformers {about['transformers']}, PEFT {about['peft']}.\n"
    )
    for setting in results["serving"]:
        yield from serving_table(setting)
    if results["training"]:
        yield from training_table(results["training"])


def serving_table(setting: dict) -> Iterator[str]:
    """Time and memory of the modes in one setting."""
    prefix, request, answer = setting["tokens"]
    rounds = 1 + max(row["round"] for row in setting["runs"])
    yield f"### {setting['model']}, {setting['precision']}, batch {setting['batch']}\n"
    yield (
        f"Prefix {prefix}, request {request}, explanation {answer} tokens; {rounds} rounds; "
        f"merging moved h by {setting['merge_distance']:.1e} of its size.\n"
    )
    yield (
        "| mode | ranking, ms | switching | reading | decoding | request, ms | beside base "
        "| quartiles | wall | h as base's | weights, MB | cache, MB | peak, MB |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|"
    for row in modes(setting):
        low, high = row["spread"]
        phases = " | ".join(f"{1e3 * row['phases'][phase]:,.1f}" for phase in serving.PHASES)
        same = "bit for bit" if row["identical"] else f"off by {row['distance']:.1f}"
        peak = f"{row['peak_bytes'] / 1e6:,.1f}" if "peak_bytes" in row else ""
        yield (
            f"| {serving.MODES[row['mode']].title} | {phases} | {1e3 * row['cpu']:,.1f} "
            f"| **{row['ratio']:.2f}** | {low:.2f} to {high:.2f} | {row['wall_ratio']:.2f} "
            f"| {same} | {row['weight_bytes'] / 1e6:,.1f} | {row['cache_bytes'] / 1e6:,.1f} "
            f"| {peak} |"
        )
    yield ""


def training_table(jobs: list[dict]) -> Iterator[str]:
    """What the shield adds to training."""
    yield "### A training step under the shield\n"
    yield (
        "| model | rows x tokens | k/d | shield | step, ms | hooks, ms "
        "| hooks beside the step | quartiles | with over without, less 1 | quartiles "
        "| hooks beside a PPO step with rollouts |"
    )
    yield "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for job in jobs:
        about = job["job"]
        ranks = ", ".join(
            f"{rank}/{width}"
            for width, rank in sorted(about["ranks"].items(), key=lambda pair: int(pair[0]))
        )
        for row in overheads(job):
            own = row["variant"] != "without"
            hooks = f"**{percent(row['hooks'])}** | {between(row['hooks_spread'])}" if own else " |"
            added = f"{percent(row['added'])} | {between(row['added_spread'])}" if own else " |"
            yield (
                f"| {job['model']} | {about['rows']} x {about['tokens']} | {ranks} "
                f"| {row['variant']} | {1e3 * row['cpu']:,.1f} | {1e3 * row['hook_seconds']:,.2f} "
                f"| {hooks} | {added} | {percent(row['whole']) if own else ''} |"
            )
    yield ""
    for job in jobs:
        found = {row["variant"]: row for row in overheads(job)}["projection"]["hooks"]
        verdict = "met" if found < GOAL else "missed"
        yield f"- {job['model']}: {percent(found)}; the goal, below {percent(GOAL)}, is {verdict}"
    yield ""


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.2f}%"


def between(bounds: tuple[float, float]) -> str:
    """Two shares in percent."""
    return " to ".join(map(percent, bounds))


def chart(results: dict, path: Path) -> None:
    """A panel of stacked bars for each setting: the phases of a request, in units of the base."""
    settings = results["serving"]
    with matplotlib.rc_context({"svg.hashsalt": "shield_price", "svg.fonttype": "none"}):
        columns = min(2, len(settings))
        lines = -(-len(settings) // columns)
        most = max(len(setting["modes"]) for setting in settings)
        size = (5.6 * columns, (0.27 * most + 0.9) * lines + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis, setting in zip(axes, settings, strict=False):
            _panel(axis, setting)
        for axis in axes[len(settings) :]:
            axis.set_visible(False)
        handles = [Patch(color=COLOURS[p], label=p) for p in serving.PHASES]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        with atomic(path) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})


def _panel(axis, setting: dict) -> None:
    rows = modes(setting)
    labels = [serving.MODES[row["mode"]].title for row in rows]
    left = [0.0] * len(rows)
    for phase in serving.PHASES:
        # Medians of the phases do not add up to that of the whole; their proportions are shown.
        widths = [row["ratio"] * row["phases"][phase] / sum(row["phases"].values()) for row in rows]
        bars = axis.barh(labels, widths, left=left, color=COLOURS[phase])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.bar_label(bars, [f"{row['ratio']:.2f}" for row in rows], padding=3)
    axis.set_title(f"{setting['model']}, {setting['precision']}, batch {setting['batch']}")
    axis.set_xlabel("CPU time, base alone = 1")
    axis.margins(x=0.18)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"run.py: error: {error}")
