"""The work, the clock and the tables of benchmarks/ppo_speed, without any peer."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from shielded_recrl.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "ppo_speed"


@pytest.fixture
def load(monkeypatch):
    """Import a module of the benchmark by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module
    # Other benchmarks have a `run` too.
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_meter_times_whole_steps_and_counts_their_work(load, monkeypatch):
    work = load("work")
    wall, cpu = iter([1.0, 4.0, 9.0]), iter([10.0, 11.0, 13.0])
    monkeypatch.setattr(work.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(work.time, "process_time", lambda: next(cpu))
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    meter = work.Meter(warm_up=1, steps=2)
    try:
        for updates, tokens in ((9, 9), (2, 5), (4, 7)):
            meter.scored([[0] * tokens])
            for _ in range(updates):
                optimizer.step()
            meter.step()
    finally:
        meter.hook.remove()
    assert meter.seconds() == ([3.0, 5.0], [1.0, 2.0])
    assert meter.work() == (3.0, 6.0)


def test_models_have_the_size_of_their_name(load):
    work = load("work")
    for name, millions in (("2M", 2), ("50M", 50)):
        with torch.device("meta"):
            frozen, trainable = work.trained(work.llama(work.JOBS[name]))
        assert frozen == 0
        assert trainable / 1e6 == pytest.approx(millions, rel=0.1)


def test_texts_and_tokens_earn_the_same_and_nothing_ends(load):
    work = load("work")
    job = work.JOBS["tiny"]
    tokenizer = work.word_tokenizer(job)
    prompts = work.draw_prompts(job, 50, seed=3)
    texts = tokenizer.batch_decode(prompts)
    assert tokenizer(texts)["input_ids"] == prompts
    by_ids = work.low_share(torch.tensor(prompts), job)
    assert work.words_reward(texts, job) == pytest.approx(by_ids.tolist())
    assert len(set(by_ids.tolist())) > 3
    assert min(tokenizer.pad_token_id, tokenizer.eos_token_id) >= job.vocabulary


def test_this_project_does_the_work_it_is_timed_for(tmp_path):
    command = [sys.executable, FOLDER / "ours.py", "--variant", "shared", "--model", "tiny"]
    command += ["--warm-up=1", "--steps=2", "--threads=1", "--profile", "--work", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["tokens"] == 4 * 4
    # Four passes over one mini batch, for the policy and for the critic's head.
    assert row["updates"] == 4 + 4
    assert len(row["seconds"]) == len(row["cpu_seconds"]) == 2
    assert 0 < 2 * sum(row["parts"].values()) < sum(row["seconds"])
    assert row["peak_mb"] > row["imported_mb"] > 0


def test_tables_give_ratios_and_goals(load):
    run = load("run")
    rows = [
        *steps(run.OURS, 1, [1.0, 1.2, 1.1], peak=500),
        *steps(run.OURS, 2, [1.0, 0.8, 1.2], peak=520),
        *steps(run.PEER, 1, [3.3, 3.3, 9.0], peak=1000),
        *steps(run.PEER, 2, [3.0, 3.2, 4.0], peak=900),
    ]
    text = "\n".join(run.markdown(rows))
    # Medians 1.05 and 3.3; by round 1.1 and 1.0, 3.3 and 3.2.
    assert "| TRL PPO | 3.300 | 3.000 to 9.000 | 3.14 | 3.00 to 3.20 |" in text
    assert "3.14 times the speed of TRL PPO (3.00 to 3.20 by round)" in text
    assert "the goal, at least 3.0, is met" in text
    # 520 / 1000, and (520 - 400) / (1000 - 400).
    assert "0.52 of its peak memory, 0.20 less what the imports take" in text
    slower = [row | {"seconds": "2.0"} if row["program"] == run.OURS else row for row in rows]
    assert "the goal, at least 3.0, is missed" in "\n".join(run.markdown(slower))


def test_tables_are_written_between_their_marks(load, tmp_path):
    run = load("run")
    run.write_csv(tmp_path / "results.csv", steps(run.OURS, 1, [1.0], peak=500))
    run.render(tmp_path)
    run.render(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.count("### 2M") == 1
    assert text.startswith("# ppo_speed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick"], "--quick: its numbers mean nothing"),
        (["--setting", "3M", "1", "1", "1"], "--setting 3M: expected one of: tiny, 2M, 50M"),
        (["--setting", "2M", "0", "1", "1"], "expected counts of at least 1"),
        (["--only", "GRPO"], "--only GRPO: expected some of: this project, shared critic; TRL"),
    ],
)
def test_mistakes_on_the_command_line_are_named(load, words, message):
    with pytest.raises(UserError, match=message):
        load("run").arguments(words)


def steps(program, turn, seconds, peak):
    """Rows of results.csv."""
    same = {"model": "2M", "program": program, "round": str(turn), "cpu_seconds": "1.0"}
    same |= {"peak_mb": str(peak), "imported_mb": "400", "frozen": "2000000", "trainable": "1000"}
    same |= {"torch": "2", "transformers": "5", "peft": "0", "threads": "2", "cores": "2"}
    return [same | {"seconds": str(value), "processor": "CPU"} for value in seconds]
