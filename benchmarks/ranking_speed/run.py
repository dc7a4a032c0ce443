"""Measure SASRec training and evaluation beside the public implementations.

In: nothing but the network on the first run, for the peers and their packages. Out, beside this
file: `results.json` with every measurement, `results.svg`, and the tables in `README.md`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import matplotlib
import synthetic
from matplotlib.figure import Figure

from shielded_recrl.errors import UserError
from shielded_recrl.files import atomic, read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache"
WORK = CACHE / "ranking_speed"
SOURCES = {
    "pmixer": (
        "https://github.com/pmixer/SASRec.pytorch",
        "f7017311510d0873ac312777efc46ed79a3489ea",
    ),
    "gsasrec": (
        "https://github.com/asash/gSASRec-pytorch",
        "0a26f3d63841af34a5f3bc66266ee92bf1e714e1",
    ),
}
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Contender:
    """An implementation with one of its losses.

    `env` names its requirements file; without one it runs in this Python. The ranking of a peer is
    timed with one of its losses. A `slow` one is measured in the first setting and round only.
    """

    name: str
    script: str
    loss: str
    env: str | None
    evaluate: bool = False
    slow: bool = False


CONTENDERS = (
    Contender("this project", "ours.py", "ce", None, evaluate=True),
    Contender("this project", "ours.py", "sampled_softmax", None),
    Contender("RecTools", "peer_rectools.py", "ce", "rectools", evaluate=True),
    Contender("RecTools", "peer_rectools.py", "bce", "rectools"),
    Contender("SASRec.pytorch", "peer_pmixer.py", "bce", "pmixer", evaluate=True),
    Contender("gSASRec-pytorch", "peer_gsasrec.py", "gbce", "gsasrec", evaluate=True, slow=True),
    Contender("RecTools", "peer_rectools.py", "sampled_softmax", "rectools", slow=True),
    Contender("RecTools", "peer_rectools.py", "gbce", "rectools", slow=True),
    Contender("RecBole", "peer_recbole.py", "ce", "recbole", evaluate=True, slow=True),
)


def main() -> None:
    """Prepare, measure round by round, write the results after each round."""
    options = arguments()
    if options.render:
        if not (HERE / "results.json").exists():
            raise UserError(
                f"{HERE / 'results.json'}: no such file; measure first, without --render"
            )
        return render(read_json(HERE / "results.json"))
    contenders = [c for c in CONTENDERS if not options.only or c.name in options.only]
    if not contenders:
        names = ", ".join(dict.fromkeys(c.name for c in CONTENDERS))
        raise UserError(f"--only {' '.join(options.only)}: expected some of: {names}")
    data = prepare_data(options.data)
    for name in dict.fromkeys(c.env for c in contenders if c.env):
        environment(name)
    runs = []
    for turn in range(max(rounds for _, _, rounds in options.setting)):
        for number, (dim, length, rounds) in enumerate(options.setting):
            if turn >= rounds:
                continue
            racing = [c for c in contenders if not c.slow or (turn == 0 and number == 0)]
            # Every other round backwards, so that no one always runs on the warmest machine.
            for contender in racing[:: -1 if turn % 2 else 1]:
                row = measure(contender, dim, length, turn, data, options)
                print(json.dumps(row), file=sys.stderr, flush=True)
                runs.append(row | {"round": turn})
        write_results(runs, options)
    print(f"wrote {HERE / 'results.json'}, results.svg and the tables of README.md")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--setting",
        nargs=3,
        type=int,
        action="append",
        metavar=("DIM", "MAX_LEN", "ROUNDS"),
        help="repeatable; default: 64 200 3, then 64 50 1, 128 50 1 and 128 200 1",
    )
    parser.add_argument("--data", type=Path, help="`user item` lines, .gz or not; else synthetic")
    parser.add_argument("--seconds", type=float, default=6, help="training time of a measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=CACHE / "peers", help="checked-out sources")
    parser.add_argument("--only", nargs="+", help="names of contenders", metavar="NAME")
    parser.add_argument("--render", action="store_true", help="tables and chart of results.json")
    options = parser.parse_args()
    options.setting = options.setting or [(64, 200, 3), (64, 50, 1), (128, 50, 1), (128, 200, 1)]
    return options


def prepare_data(given: Path | None) -> Path:
    """A plain text file of `user item` lines that every contender can read."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / (f"{given.name.removesuffix('.gz')}" if given else "synthetic.txt")
    if given:
        opener = gzip.open if given.suffix == ".gz" else open
        with opener(given, "rb") as source, atomic(path) as partial, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    elif not path.exists():
        with atomic(path) as partial:
            synthetic.write(partial)
    return path


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


def source(name: str, peers: Path) -> Path:
    """The checked-out source of a peer that is no package, cloned where it is missing."""
    folder, (url, commit) = peers / name, SOURCES[name]
    if not folder.exists():
        with atomic(folder) as partial:
            subprocess.run(["git", "clone", "--quiet", url, partial], check=True)
            subprocess.run(["git", "-C", partial, "checkout", "--quiet", commit], check=True)
    return folder


def measure(
    contender: Contender, dim: int, length: int, seed: int, data: Path, options: argparse.Namespace
) -> dict:
    """One measurement in a process and a folder of its own.

    Raises:
        UserError: the contender fails.
    """
    python = environment(contender.env) if contender.env else sys.executable
    with tempfile.TemporaryDirectory(dir=WORK) as work:
        command = [python, HERE / contender.script, "--data", data, "--loss", contender.loss]
        command += [f"--dim={dim}", f"--max-len={length}", f"--seed={seed}", "--work", work]
        command += [f"--threads={options.threads}", f"--seconds={options.seconds}"]
        if contender.env in SOURCES:
            command += ["--source", source(contender.env, options.peers).resolve()]
        if contender.evaluate:
            command += ["--evaluate"]
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(
            command, env=os.environ | threads, capture_output=True, text=True, check=False
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{contender.name} {contender.loss}, dim {dim}, length {length}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def write_results(runs: list[dict], options: argparse.Namespace) -> None:
    """All measurements so far, and what they were made with."""
    results = {
        "data": options.data.name if options.data else "synthetic",
        "seconds": options.seconds,
        "threads": options.threads,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "contenders": [asdict(contender) for contender in CONTENDERS],
        "runs": runs,
    }
    write_json(HERE / "results.json", results)
    render(results)


def processor() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def render(results: dict) -> None:
    """Write the tables into README.md, and the chart of the first setting."""
    path = HERE / "README.md"
    before, rest = path.read_text().split(BEGIN)
    tables = "\n".join(markdown(results))
    write_text(path, f"{before}{BEGIN}\n\n{tables}\n{END}{rest.partition(END)[2]}")
    chart(next(iter(summaries(results).values())), HERE / "results.svg")


def summaries(results: dict) -> dict[tuple[int, int], list[dict]]:
    """Medians of each contender by setting (dim, max_len), in the order of the contenders."""
    groups: dict[tuple[int, int], dict[tuple[str, str], list[dict]]] = {}
    for row in results["runs"]:
        setting = groups.setdefault((row["dim"], row["max_len"]), {})
        setting.setdefault((row["peer"], row["loss"]), []).append(row)
    order = [(contender["name"], contender["loss"]) for contender in results["contenders"]]
    return {
        setting: [summary(rows[key]) for key in order if key in rows]
        for setting, rows in groups.items()
    }


def summary(rows: list[dict]) -> dict:
    """The medians of one contender's measurements, with the range of its speed."""
    speeds = [row["targets_per_second"] for row in rows]
    times = [row["evaluation_seconds"] for row in rows if row["evaluation_seconds"] is not None]
    return {
        "name": rows[0]["peer"],
        "loss": rows[0]["loss"],
        "rounds": len(rows),
        "speed": median(speeds),
        "range": (min(speeds), max(speeds)),
        "step": median(row["seconds_per_step"] for row in rows),
        "evaluation": median(times) if times else None,
        "memory": max(row["peak_rss_mb"] for row in rows),
    }


def markdown(results: dict) -> Iterator[str]:
    """A table and its ratios for each setting."""
    machine = results["machine"]
    yield "![Speed of training and of ranking in the first setting](results.svg)\n"
    yield (
        f"{machine['processor']}, {machine['cores']} cores, {results['threads']} threads; "
        f"data: {results['data']}; medians, with the range over the rounds.\n"
    )
    for (dim, length), rows in summaries(results).items():
        yield f"### Width {dim}, length {length}\n"
        yield (
            "| implementation | loss | targets/s | range | s/step | full ranking, s "
            "| peak memory, MB | rounds |"
        )
        yield "|---|---|--:|--:|--:|--:|--:|--:|"
        for row in rows:
            low, high = row["range"]
            ranking = "" if row["evaluation"] is None else f"{row['evaluation']:.2f}"
            yield (
                f"| {row['name']} | {row['loss']} | {row['speed']:,.0f} | {low:,.0f} to {high:,.0f}"
                f" | {row['step']:.3f} | {ranking} | {row['memory']:,.0f} | {row['rounds']} |"
            )
        yield ""
        yield from (f"- {line}" for line in ratios(rows))
        yield ""


def ratios(rows: list[dict]) -> Iterator[str]:
    """This project beside the best peer, in sentences."""
    ours = {row["loss"]: row for row in rows if row["name"] == CONTENDERS[0].name}
    peers = [row for row in rows if row["name"] != CONTENDERS[0].name]
    full = [row for row in peers if row["loss"] == "ce"]
    ranked = [row for row in peers if row["evaluation"] is not None]
    if full and "ce" in ours:
        best = max(full, key=lambda row: row["speed"])
        times = ours["ce"]["speed"] / best["speed"]
        yield f"full cross-entropy: {times:.2f} times the speed of {best['name']}"
    if peers and "sampled_softmax" in ours:
        best = max(peers, key=lambda row: row["speed"])
        times = ours["sampled_softmax"]["speed"] / best["speed"]
        label = f"{best['name']} ({best['loss']})"
        yield f"sampled softmax: {times:.2f} times the speed of the fastest peer, {label}"
    if ranked and "ce" in ours and ours["ce"]["evaluation"] is not None:
        best = min(ranked, key=lambda row: row["evaluation"])
        times = best["evaluation"] / ours["ce"]["evaluation"]
        yield f"full ranking: {times:.2f} times the speed of the fastest peer, {best['name']}"


def chart(rows: list[dict], path: Path) -> None:
    """Bars of training speed and of ranking time."""
    ranked = [row for row in rows if row["evaluation"] is not None]
    panels = (
        ("Training: real targets a second", rows, "speed", "{:,.0f}"),
        ("Ranking all users: seconds", ranked, "evaluation", "{:.1f}"),
    )
    with matplotlib.rc_context({"svg.hashsalt": "ranking_speed", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        for axis, (title, some, key, style) in zip(figure.subplots(1, 2), panels, strict=True):
            labels = [f"{row['name']}, {row['loss']}" for row in some]
            colours = ["C0" if row["name"] == CONTENDERS[0].name else "0.7" for row in some]
            bars = axis.barh(labels, [row[key] for row in some], color=colours)
            axis.bar_label(bars, [style.format(row[key]) for row in some], padding=3)
            axis.set_title(title)
            axis.margins(x=0.18)
            axis.invert_yaxis()
            axis.spines[["top", "right"]].set_visible(False)
        with atomic(path) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"run.py: error: {error}")
