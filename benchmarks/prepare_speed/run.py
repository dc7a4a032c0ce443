"""Measure `data prepare` beside plain pandas, polars and duckdb scripts.

    python benchmarks/prepare_speed/run.py                    # 25 million ratings with integer ids
    python benchmarks/prepare_speed/run.py --format books --rows 10000000 --core 10
    python benchmarks/prepare_speed/run.py --growth           # and growth.svg, 1 to 25 million

Data, an environment for the scripts, and all output go to benchmarks/.cache/prepare_speed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "benchmarks" / ".cache" / "prepare_speed"
PEERS = ("polars", "duckdb", "pandas")
COLUMNS = ("wall s", "CPU s", "peak GB")
MIN_WEIGHT = 4


def environment() -> Path:
    """The Python that has what the scripts need."""
    python = CACHE / "venv" / "bin" / "python"
    requirements = HERE / "requirements.txt"
    done = CACHE / "venv" / requirements.name
    if not done.is_file() or done.read_text() != requirements.read_text():
        venv.create(CACHE / "venv", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
        done.write_text(requirements.read_text())
    return python


def data(kind: str, rows: int, python: Path) -> Path:
    """The raw file, made once."""
    path = CACHE / f"{kind}-{rows}.csv"
    if not path.is_file():
        partial = path.with_suffix(".partial")
        words = ("--format", kind, "--rows", str(rows), "--out", partial)
        subprocess.run([python, HERE / "generate.py", *words], check=True)
        partial.rename(path)
    return path


def measured(words: list, threads: int) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak RSS in GB of a command."""
    env = os.environ | {"POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, words)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{words}: {said.decode()}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def commands(raw: Path, kind: str, core: int, python: Path) -> dict[str, list]:
    """What is measured, by name."""
    dataset, ids = ("ml25m", "number") if kind == "movielens" else ("books", "text")
    ours = [sys.executable, "-m", "shielded_recrl.data", "prepare", "--dataset", dataset]
    ours += ["--interactions", raw, "--out", CACHE / "ours", "--min-weight", MIN_WEIGHT]
    found = {"prepare": [*ours, "--min-interactions", core]}
    for name in PEERS:
        out = CACHE / name
        out.mkdir(exist_ok=True)
        script = HERE / "peers" / f"{name}_script.py"
        found[name] = [python, script, raw, out, MIN_WEIGHT, core, ids]
    return found


CHECK = """
import json, sys
from pathlib import Path
import polars as pl
cache, ids = Path(sys.argv[1]), sys.argv[2]
parts = ("train", "valid", "test")
sizes = {
    name: [pl.scan_parquet(cache / name / f"{part}.parquet").select(pl.len()).collect().item()
           for part in parts]
    for name in ("ours", "polars", "duckdb", "pandas")
}
same = True
if ids == "number":
    source = {
        side: pl.read_parquet(cache / "ours" / f"{side}s.parquet").select(
            side, pl.col("source_id").cast(pl.Int32).alias(f"{side}_id")
        )
        for side in ("user", "item")
    }
    for part in parts:
        ours = pl.read_parquet(cache / "ours" / f"{part}.parquet")
        for side, table in source.items():
            ours = ours.join(table, on=side, maintain_order="left")
        ours = ours.select("user_id", "item_id", "weight", "timestamp")
        theirs = pl.read_parquet(cache / "polars" / f"{part}.parquet")
        same &= ours.rows() == theirs.rows() if len(ours) < 10**5 else (
            ours.hash_rows(seed=1).equals(theirs.rename(
                dict(zip(theirs.columns, ours.columns))).hash_rows(seed=1)))
print(json.dumps({"sizes": sizes, "same rows": same}))
"""


def check(kind: str, python: Path) -> list[int]:
    """Sizes of train, valid and test, after all four were found to agree."""
    ids = "number" if kind == "movielens" else "text"
    words = [python, "-c", CHECK, CACHE, ids]
    found = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    sizes = found["sizes"]
    if len(set(map(tuple, sizes.values()))) != 1 or not found["same rows"]:
        sys.exit(f"the scripts disagree: {found}")
    return sizes["ours"]


def medians(kind: str, rows: int, core: int, runs: int, threads: int) -> dict[str, list[float]]:
    """Median wall, CPU and peak of each, all of them interleaved."""
    python = environment()
    words = commands(data(kind, rows, python), kind, core, python)
    results = {name: [] for name in words}
    for _ in range(runs):
        for name, command in words.items():
            results[name].append(measured(command, threads))
    sizes = check(kind, python)
    found = {
        name: [statistics.median(column) for column in zip(*runs_, strict=True)]
        for name, runs_ in results.items()
    }
    print(f"\n{kind}, {rows:,} rows, {core}-core, {runs} runs, {threads} threads; kept {sizes}\n")
    print(f"| | {' | '.join(COLUMNS)} | wall and CPU beside prepare |")
    print("|---|---|---|---|---|")
    for name, (wall, cpu, peak) in found.items():
        ratio = f"{wall / found['prepare'][0]:.2f}, {cpu / found['prepare'][1]:.2f}"
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {peak:.2f} | {ratio} |")
    return found


def growth(kind: str, core: int, runs: int, threads: int) -> None:
    """growth.svg: CPU seconds and peak RSS from 1 to 25 million rows."""
    import matplotlib.pyplot as plt

    sizes = (1_000_000, 5_000_000, 10_000_000, 25_000_095)
    table = {size: medians(kind, size, core, runs, threads) for size in sizes}
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
    for place, (axis, label) in enumerate(zip(axes, COLUMNS, strict=True)):
        for name in table[sizes[0]]:
            values = [table[size][name][place] for size in sizes]
            axis.plot([size / 1e6 for size in sizes], values, marker="o", label=name)
        axis.set(xlabel="million ratings", title=label, ylim=0)
    axes[0].legend(frameon=False)
    figure.savefig(HERE / "growth.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("movielens", "books"), default="movielens")
    parser.add_argument("--rows", type=int, default=25_000_095)
    parser.add_argument("--core", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--growth", action="store_true")
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    rest = (arguments.core, arguments.runs, arguments.threads)
    if arguments.growth:
        growth(arguments.format, *rest)
    else:
        medians(arguments.format, arguments.rows, *rest)


if __name__ == "__main__":
    main()
