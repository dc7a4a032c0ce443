"""The comparison as a table, as samples and as a page: what it says, and what data cannot do to it."""

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command_line import here
from shielded_recrl.dialogue.comparison.contestants import PAIRS, pair_name
from shielded_recrl.dialogue.comparison.side_by_side import as_markdown, as_text, first_dialogues
from shielded_recrl.dialogue.comparison.text import (
    JUDGES,
    SHOWN,
    aligned,
    brief,
    columns,
    difference,
    ends,
    load_run,
    log_rows,
    over_seeds,
    statement,
    verdicts,
    way,
)
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.report import section
from shielded_recrl.errors import UserError
from shielded_recrl.files import write_json, write_jsonl

EVIL = '<script>alert(1)</script> ![x](http://evil/x.png) | `a` \x1b[31mred\x07 "q"'
METRICS = (
    *(f"{form}bleu_{n}" for form in ("", "ecr_") for n in range(1, 5)),
    *(f"{form}distinct_{n}" for form in ("", "ecr_") for n in range(1, 5)),
    *("item_ratio", "ecr_item_ratio", "emotion_match", "words"),
)
TRAINED = (
    *("step", "reward", "reward_critic", "reward_format", "reward_support"),
    *("reward_repetition", "reward_copying", "kl", "entropy", "words", "ended"),
)


def interval(mean: float, half: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def part(critic: float, rules: float, unseen: float) -> dict:
    values = {"critic": critic, "rules": rules, "unseen": unseen}
    return {
        "scores": {judge: dict.fromkeys(HEADS, interval(values[judge])) for judge in JUDGES},
        "text": dict.fromkeys(METRICS, interval(0.2)),
        "named": interval(0.05),
    }


def evaluation(critic: float = 0.05, unseen: float = 0.0, seed: int = 1) -> dict:
    recalls = {"recall@1": interval(0.04), "recall@10": interval(0.2), "targets": 9, "sha256": "f"}
    return {
        "seed": seed,
        "synthetic": True,
        "turns": 3,
        "dialogues": 2,
        "temperature": 1.0,
        "systems": {name: part(0.5, 0.4, 0.3) for name in SHOWN},
        "comparisons": {pair_name(*pair): part(critic, 0.0, unseen) for pair in PAIRS},
        "kl": {
            "rl": {"per_token": interval(0.08), "per_response": interval(1.1)},
            "best_of_n": {"per_response_at_most": 0.636},
        },
        "samples": {
            "a_turn": {"supervised": 1, "best_of_n": 4, "rl": 1, "rl_best_of_n": 4},
            "training": 600,
            "even_after": 200.0,
        },
        "distance": {"norm": 1.25, "relative": 0.05, "layers": 21, "moved": 21},
        "recommendations": {"before": recalls, "after": recalls, "equal": True},
    }


def answered(dialogue: int, turn: int, text: str = "Try <movie>!") -> dict:
    said = ["Hi!", "Hello there.", "What is new?", "It is late."][:turn]
    roles = ("seeker", "recommender")
    one = {"text": text, "filled": text, "emotions": ["happy"]}
    return {
        "dialogue": dialogue,
        "turn": turn,
        "context": [{"role": roles[n % 2], "text": line} for n, line in enumerate(said)],
        "emotions": ["happy"],
        "recommended": ["Heat (1995)"],
        "responses": {
            name: one | {"overall": {"critic": 0.5, "rules": 0.4, "unseen": 0.3}} for name in SHOWN
        },
    }


def write_run(folder: Path, about: dict, rows: list[dict]) -> Path:
    write_json(folder / "evaluation.json", about)
    write_jsonl(folder / "responses.jsonl", rows)
    steps = [dict.fromkeys(TRAINED, 0.5) | {"step": step} for step in range(1, 8)]
    write_jsonl(folder / "train.jsonl", steps)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    rows = [answered(12, 3), answered(7, 1), answered(12, 1), answered(30, 1, EVIL)]
    return write_run(tmp_path / "seed-1", evaluation(), rows)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.2, "higher"), (-0.2, -0.1, "lower"), (-0.1, 0.1, "undecided")]
)
def test_an_interval_decides(low, high, said):
    assert way({"mean": 0.0, "low": low, "high": high}) == said


@pytest.mark.parametrize(
    ("critic", "unseen", "said"),
    [
        (0.05, 0.05, "Both agree"),
        (0.05, -0.05, "reward over-optimisation, and this policy is no improvement"),
        (0.05, 0.0, "not shown to be a gain"),
        (0.0, 0.05, "RL did not raise the score that it was trained on"),
        (-0.05, -0.05, "RL did not raise the score that it was trained on"),
    ],
)
def test_the_verdict_says_what_the_intervals_say(critic, unseen, said):
    lines = verdicts(evaluation(critic, unseen))
    assert sum(said in line for line in lines) == 1
    judged = [line for line in lines if line.startswith("Judge `unseen`, which no reward saw:")]
    words = {0.05: "scores higher than", -0.05: "scores lower than", 0.0: "no difference"}
    assert len(judged) == 1
    assert words[unseen] in judged[0]
    assert f"{unseen:+.3f}" in judged[0]
    assert any("600 samples to train" in line and "200 turns" in line for line in lines)


def test_every_verdict_has_its_interval():
    lines = verdicts(evaluation())
    assert sum("[" in line for line in lines) == len(lines) - 2


def test_the_statement_has_both_recalls_and_how_many_films():
    said = statement(evaluation())
    assert "recall@1 0.040 [0.030, 0.050]" in said
    assert "recall@10 0.200" in said
    assert "9 films" in said


def test_the_report_says_that_dialogues_are_generated(run):
    for synthetic, said in ((True, "2 generated test dialogues"), (False, "of 2 test dialogues")):
        about = evaluation() | {"synthetic": synthetic}
        lines = section(load_run(run)._replace(evaluation=about))
        assert any(said in line for line in lines)


def test_runs_are_counted(run, tmp_path):
    other = write_run(tmp_path / "seed-2", evaluation(-0.05, 0.05, seed=2), [answered(1, 1)])
    assert over_seeds([load_run(run)]) == []
    lines = over_seeds([load_run(run), load_run(other)])
    assert lines[0].startswith("Critic")
    assert "higher in 1, lower in 1 of 2 runs" in lines[0]
    assert lines[2].startswith("Judge `unseen`")
    assert "higher in 1, lower in 0 of 2 runs" in lines[2]


def test_tables_are_whole():
    about = evaluation()
    assert {len(row) for row in brief(about)} == {len(columns(about))}
    assert columns(about)[-1] == "RL, best of 4 − supervised, best of 4"
    assert (ends(None), difference(None)) == ("–", "–")
    assert difference(interval(0.0)) == "+0.000 [-0.010, +0.010]"
    assert len({len(line) for line in aligned([("a", "bb"), ("ccc", "d")])}) == 1
    steps = [dict.fromkeys(TRAINED, 0.5) | {"step": step} for step in range(1, 8)]
    assert [row[0] for row in log_rows(steps)] == ["step", "1", "4", "7"]
    assert [row[0] for row in log_rows(steps[:1])] == ["step", "1"]


def test_samples_are_the_first_dialogues_and_show_what_was_said_once(run):
    done = here("dialogue", *f"samples --run {run} --dialogues 2".split())
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^Dialogue (\d+)$", done.stdout, re.MULTILINE) == ["7", "12"]
    assert done.stdout.count("What is new?") == 1
    # What a person said there is the first of the answers, and no line of its own.
    assert "Hello there." not in done.stdout
    assert done.stdout.count("person: Try <movie>!") == 3


def test_data_reach_the_terminal_as_printable_characters():
    lines = list(as_text(first_dialogues([answered(1, 1, EVIL)], 1), 4))
    assert any("alert(1)" in line for line in lines)
    assert all(line.isprintable() for line in lines)


class Page(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


def test_the_report_is_whole_and_its_page_fetches_and_runs_nothing(run, tmp_path):
    out = tmp_path / "report"
    done = here("dialogue", *f"report --runs {run} --out {out} --dialogues 3".split())
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        *("comparison.html", "comparison.md", "samples.md")
    ]
    markdown, page = ((out / f"comparison.{kind}").read_text() for kind in ("md", "html"))
    for line in verdicts(evaluation()):
        assert line in markdown
    assert "ecr_bleu_4" in markdown
    assert "recall@10" in markdown
    assert all(f"| {head} |" in markdown for head in HEADS)
    parsed = Page(page)
    assert parsed.addresses == []
    assert not parsed.tags & {"script", "img", "link", "iframe"}
    assert "Content-Security-Policy" in page
    assert "&lt;script&gt;alert(1)" in page
    assert re.findall(r"<h3>Dialogue (\d+)</h3>", page) == ["7", "12", "30"]
    samples = (out / "samples.md").read_text()
    assert "<script>" not in samples
    assert "&lt;script>" in samples
    assert "chosen by nobody" in samples
    assert "### Dialogue 30" in samples


def test_side_by_side_is_one_table_a_turn():
    lines = as_markdown(first_dialogues([answered(1, 1, EVIL)], 1), 4)
    header = "| person | supervised | supervised, best of 4 | RL |"
    assert lines.count(header) == 1
    table = lines[lines.index(header) :]
    assert all(line.count("|") == 5 for line in table[:4])


def test_the_same_report_is_the_same_bytes(run, tmp_path):
    for name in ("one", "two"):
        here("dialogue", *f"report --runs {run} --out {tmp_path / name}".split())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_compare_prints_the_table_and_the_verdict(run):
    done = here("dialogue", *f"compare --runs {run}".split())
    assert done.returncode == 0, done.stderr
    assert "overall, unseen" in done.stdout
    assert "+0.050 [+0.040, +0.060]" in done.stdout
    assert all(line in done.stdout for line in verdicts(evaluation()))


def test_what_is_missing_or_damaged_is_one_line(run, tmp_path):
    for name, text, reason in (
        ("evaluation.json", "{", "not valid JSON"),
        ("evaluation.json", json.dumps({"systems": {}}), "no comparisons"),
        ("evaluation.json", "[]", "no systems"),
        ("train.jsonl", "", "no step in it"),
    ):
        before = (run / name).read_text()
        (run / name).write_text(text)
        done = here("dialogue", "compare", "--runs", run)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert name in done.stderr
        assert reason in done.stderr
        (run / name).write_text(before)
    (run / "responses.jsonl").write_text('{"dialogue": 1}\n')
    done = here("dialogue", "samples", "--run", run)
    assert done.returncode == 1
    assert "line 1: no answered turn" in done.stderr
    with pytest.raises(UserError, match="no such file"):
        load_run(tmp_path / "nowhere")
    assert here("dialogue", "samples", "--run", run, "--dialogues", 0).returncode == 1


def test_pages_need_no_torch():
    words = "import sys; from shielded_recrl.dialogue import compare, report, samples; "
    done = subprocess.run(
        [sys.executable, "-c", f"{words} sys.exit('torch' in sys.modules)"], check=False
    )
    assert done.returncode == 0


def test_null_metrics_have_a_dash():
    about = copy.deepcopy(evaluation())
    about["systems"]["rl"]["text"]["emotion_match"] = None
    row = next(row for row in brief(about) if row[0] == "emotion_match")
    assert row[1 + SHOWN.index("rl")] == "–"
