"""The comparison as a table, as samples and as a page: what it says, and what data cannot do to it."""

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browser import chromium, chromium_page  # noqa: F401
from command_line import here
from compared_runs import (
    answered,
    critic_report,
    evaluation,
    interval,
    new_films,
    steps,
    with_model,
    write_evaluation,
    write_run,
    write_stages,
)
from shielded_recrl.dialogue.comparison.finding import (
    headline,
    meaning,
    points,
    table_header,
    table_rows,
)
from shielded_recrl.dialogue.comparison.runs import (
    Run,
    load_critic,
    load_responses,
    load_run,
    load_study,
)
from shielded_recrl.dialogue.comparison.side_by_side import (
    answered as answered_turns,
)
from shielded_recrl.dialogue.comparison.side_by_side import (
    as_markdown,
    as_text,
    drawn_dialogues,
    extremes,
)
from shielded_recrl.dialogue.comparison.text import (
    SHOWN,
    aligned,
    brief,
    columns,
    critic_rows,
    difference,
    ends,
    judge_name,
    judges,
    log_rows,
    recommender_rows,
    statement,
    verdicts,
    way,
)
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.report import READING, Parts, findings
from shielded_recrl.errors import UserError
from shielded_recrl.files import write_json

EVIL = '<script>alert(1)</script> ![x](http://evil/x.png) | `a` \x1b[31mred\x07 "q"'
FIGURES = ["critic.svg", "differences.svg", "recommender.svg", "training.svg"]


def rows(evil: str = "Try <movie>!") -> list[dict]:
    return [answered(12, 3), answered(7, 1), answered(12, 1), answered(30, 1, evil)]


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "seed-1", evaluation(), rows(EVIL))


@pytest.fixture
def study(tmp_path) -> list[Path]:
    return three(tmp_path)


def three(folder: Path) -> list[Path]:
    """Three runs, of which the unseen judge says three things."""
    return [
        write_run(folder / f"seed-{seed}", evaluation(0.1, unseen, seed), rows(EVIL))
        for seed, unseen in ((3, -0.04), (1, 0.05), (2, 0.0))
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The report of three runs."""
    folder = tmp_path_factory.mktemp("written")
    return write(three(folder), folder, "--dialogues", 3)


def made(*unseen: float, critic: float | tuple[float, ...] = 0.05) -> list[Run]:
    rewards = critic if isinstance(critic, tuple) else (critic,) * len(unseen)
    return [
        Run(Path(str(seed)), evaluation(reward, value, seed), steps())
        for seed, (reward, value) in enumerate(zip(rewards, unseen, strict=True))
    ]


def inputs(**other: str) -> dict:
    return {"inputs": evaluation(seed=1)["inputs"] | other}


def training(**other: str | int) -> dict:
    return {"training": evaluation(seed=1)["training"] | other}


def write(runs: list[Path], folder: Path, *words: object) -> Path:
    """The report of some runs."""
    recommender, critic = write_stages(folder)
    out = folder / "report"
    given = ("--recommender", recommender, "--critic", critic, "--out", out, *words)
    done = here("dialogue", "report", "--runs", *runs, *given)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.2, "higher"), (-0.2, -0.1, "lower"), (-0.1, 0.1, "undecided")]
)
def test_an_interval_decides(low, high, said):
    assert way({"mean": 0.0, "low": low, "high": high}) == said


class TestOneRun:
    @pytest.mark.parametrize(
        ("critic", "unseen", "said"),
        [
            (0.05, 0.05, "Both agree"),
            (0.05, -0.05, "reward over-optimisation, and this policy is no improvement"),
            (0.05, 0.0, "not shown to be a gain"),
            (0.005, 0.05, "not shown to have raised the score that it was trained on; a gain"),
            (0.0, 0.0, "not shown to have raised the score that it was trained on, nor"),
            (-0.05, -0.05, "not shown to have raised the score that it was trained on; a loss"),
        ],
    )
    def test_verdict_says_what_the_intervals_say(self, critic, unseen, said):
        lines = verdicts(evaluation(critic, unseen))
        assert sum(said in line for line in lines) == 1
        judged = [line for line in lines if line.startswith("Judge `unseen`, which no reward saw:")]
        words = {0.05: "scores higher than", -0.05: "scores lower than", 0.0: "no difference"}
        assert len(judged) == 1
        assert words[unseen] in judged[0]
        assert f"{unseen:+.3f}" in judged[0]
        assert any("600 samples to train" in line and "200 turns" in line for line in lines)

    def test_every_verdict_has_its_interval(self):
        lines = verdicts(evaluation())
        assert sum("[" in line for line in lines) == len(lines) - 2

    def test_any_judge_is_told_of_and_what_it_left_out(self):
        about = with_model(evaluation(), "llama", rl_minus_supervised=0.2)
        assert judges(about) == ("critic", "rules", "llama", "unseen")
        lines = verdicts(about)
        assert any(
            line.startswith("Judge `llama`, which no reward saw: RL scores h") for line in lines
        )
        left = [line for line in lines if "gave no score" in line]
        assert len(left) == 1
        assert "`llama`" in left[0]
        assert "RL 2," in left[0]
        about["judges"]["llama"]["taught"] = True
        assert judge_name(about, "llama") == "judge `llama`, which the critic learned from"

    def test_a_judge_that_scored_nothing_shows_no_difference(self):
        about = with_model(evaluation(), "llama")
        for found in (*about["systems"].values(), *about["comparisons"].values()):
            found["scores"]["llama"] = dict.fromkeys(HEADS)
        assert any("no difference" in line and "llama" in line for line in verdicts(about))
        assert next(row for row in brief(about) if "llama" in row[0])[1:] == ("–",) * 8

    def test_statement_has_both_recalls_and_how_many_films(self):
        said = statement(evaluation())
        assert "before training and at evaluation, is the same" in said
        assert "recall@1 0.040 [0.030, 0.050]" in said
        assert "recall@10 0.200" in said
        assert "9 films" in said

    def test_tables_are_whole(self):
        about = evaluation()
        assert {len(row) for row in brief(about)} == {len(columns(about))}
        assert columns(about)[-1] == "best of 4 of RL − best of 4"
        assert (ends(None), difference(None)) == ("–", "–")
        assert difference(interval(0.0)) == "+0.000 [-0.010, +0.010]"
        assert len({len(line) for line in aligned([("a", "bb"), ("ccc", "d")])}) == 1
        assert [row[0] for row in log_rows(steps())] == ["step", "1", "4", "7"]
        assert [row[0] for row in log_rows(steps(1))] == ["step", "1"]

    def test_null_metrics_have_a_dash(self):
        about = copy.deepcopy(evaluation())
        about["systems"]["rl"]["text"]["emotion_match"] = None
        row = next(row for row in brief(about) if row[0] == "emotion_match")
        assert row[1 + SHOWN.index("rl")] == "–"

    def test_stages_before_are_tables(self):
        heads, faults = critic_rows(critic_report())
        assert [row[0] for row in heads] == list(HEADS)
        assert heads[-1][3] == "+0.0600 [+0.0500, +0.0700]"
        assert faults[0] == ("foreign", "300", "0.600 [0.560, 0.640]")
        first, second, *_ = recommender_rows(new_films())
        assert first == ("recommender", "0.600 [0.550, 0.650]", "–")
        assert second == ("stage1", "0.500 [0.450, 0.550]", "+0.100 [+0.060, +0.140]")


class TestSeveralRuns:
    def test_headline_counts_trainings_and_has_their_range(self):
        said = headline(made(0.05, 0.0, -0.04))
        assert "above the supervised LM in 1 of 3 trainings and below it in 1; in 1 the" in said
        assert "mean difference is +0.003, from -0.040 to +0.050" in said

    def test_how_far_trainings_lie_apart_stands_beside_the_interval_of_one(self):
        said = points(made(0.05, 0.0, -0.04))[0]
        assert "0.090 from the least to the greatest" in said
        assert "interval of one is 0.020 wide" in said

    def test_one_training_is_called_one(self):
        assert "That is one training" in headline(made(0.05))
        assert "+0.050 [+0.040, +0.060]" in headline(made(0.05))
        assert meaning(made(0.05)).startswith("Both agree")
        assert not any("apart" in point for point in points(made(0.05)))

    @pytest.mark.parametrize(
        ("unseen", "critic", "said"),
        [
            (
                (0.05, 0.05),
                0.05,
                ["in 2 of 2", "Where it is, {judge} a gain in 2 of 2, a loss in none."],
            ),
            ((0.05, 0.0), 0.05, ["Where it is, {judge} a gain in 1 of 2, a loss in none."]),
            (
                (0.05, -0.05),
                0.05,
                ["Where it is, {judge} a gain in 1 of 2, a loss in 1, reward over-optimisation."],
            ),
            (
                (-0.1, -0.1, 0.05),
                (0.05, 0.05, 0.005),
                [
                    "is shown to have raised the score that it was trained on in 2 of 3",
                    "Where it is, {judge} a gain in none of 2, a loss in 2, reward over-optimisation.",
                    "Where it is not shown to have, {judge} a gain in 1 of 1, a loss in none.",
                ],
            ),
            (
                (0.05, -0.05),
                0.0,
                ["in none of 2", "not shown to have, {judge} a gain in 1 of 2, a loss in 1."],
            ),
        ],
    )
    def test_what_it_means_counts_all_trainings(self, unseen, critic, said):
        found = meaning(made(*unseen, critic=critic))
        for part in said:
            assert part.format(judge="the judge that never saw it finds") in found
        assert ("Where it is," in found) == (critic != 0.0)
        assert ("not shown to have" in found) == (critic != 0.05)
        assert ("over-optimisation" in found) == any("over-optimisation" in part for part in said)

    def test_points_and_tables_have_every_judge_and_training(self):
        runs = [
            run._replace(evaluation=with_model(run.evaluation, "llama", rl_minus_supervised=0.2))
            for run in made(0.05, 0.0)
        ]
        said = points(runs)
        assert any(
            "`llama`, which no reward saw: above in 2 of 2, below in none" in p for p in said
        )
        assert table_header(runs)[1:3] == ("seed 0", "seed 1")
        table = {row[0]: row for row in table_rows(runs, ("rl", "supervised"))}
        assert list(table) == ["`critic`", "`rules`", "`llama`", "`unseen`"]
        assert table["`unseen`"][1:] == (
            *("+0.050 [+0.040, +0.060]", "+0.000 [-0.010, +0.010]"),
            *("+0.025, from +0.000 to +0.050", "1 / 1 / 0"),
        )

    def test_report_says_that_dialogues_are_generated(self):
        for synthetic, said in (
            (True, "2 generated test dialogues"),
            (False, "of 2 test dialogues"),
        ):
            runs = made(0.05)
            runs[0].evaluation["synthetic"] = synthetic
            assert any(said in line for line in findings(Parts(runs, [], {}, {})))

    def test_reading_says_what_settles_it_and_what_a_gain_may_be(self):
        said = " ".join(READING.split())
        assert "goes by what people said in the train dialogues" in said
        assert "is not told what the person answered" in said
        assert "may be that clean-up alone" in said

    def test_runs_come_by_seed(self, study):
        assert [run.seed for run in load_study(study)] == [1, 2, 3]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (inputs(critic="other"), "inputs.critic is not that of"),
            (inputs(base="other"), "inputs.base is not that of"),
            (inputs(emotions="more"), "inputs.emotions is not that of"),
            (training(settings_sha256="u"), "training.settings_sha256 is not that of"),
            (training(steps=8), "training.steps is not that of"),
            (training(samples=601), "training.samples is not that of"),
            ({"sampling_seed": 43}, "sampling_seed is not that of"),
            ({"turns": 4}, "turns is not that of"),
            ({"seed": 2}, "seed 2 is there twice"),
        ],
    )
    def test_runs_of_two_studies_are_refused(self, study, change, said):
        write_evaluation(study[1], evaluation(seed=1) | change)
        with pytest.raises(UserError, match=said):
            load_study(study)

    def test_runs_of_other_judges_are_refused(self, study):
        write_evaluation(study[1], with_model(evaluation(seed=1), "llama"))
        with pytest.raises(UserError, match="evaluate both by the same judges"):
            load_study(study)

    @pytest.mark.parametrize(
        ("name", "load", "writer"),
        [("train.jsonl", load_run, "training"), ("responses.jsonl", load_responses, "evaluation")],
    )
    def test_files_of_another_evaluation_are_refused(self, run, name, load, writer):
        load(run)
        path = run / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        with pytest.raises(
            UserError, match=f"{name}: written by another {writer}; run evaluate again"
        ):
            load(run)


class TestSamples:
    def test_dialogues_are_drawn_by_the_seed_and_stand_in_order(self):
        turns = answered_turns({1: [answered(number, 1) for number in range(50)]})

        def drawn(count: int, seed: int) -> list[int]:
            return [found[0].dialogue for found in drawn_dialogues(turns, count, seed)]

        assert drawn(5, 1) == drawn(5, 1) == sorted(drawn(5, 1))
        assert len({tuple(drawn(5, seed)) for seed in range(10)}) > 5
        assert drawn(99, 1) == list(range(50))

    def test_a_turn_has_the_rows_of_all_trainings(self):
        found = answered_turns({1: rows(), 2: rows()[:2]})
        assert [(turn.dialogue, turn.turn) for turn in found] == [(7, 1), (12, 1), (12, 3), (30, 1)]
        assert [list(turn.rows) for turn in found] == [[1, 2], [1], [1, 2], [1]]

    def test_extremes_are_the_largest_gains_and_losses(self):
        gains = (0.1, -0.3, 0.0, 0.6, 0.1)
        turns = answered_turns(
            {seed: [answered(n, 1, gain=g * seed) for n, g in enumerate(gains)] for seed in (1, 2)}
        )
        most, least = extremes(turns, "unseen", 3)
        assert [(one.turn.dialogue, one.seed) for one in most] == [(3, 2), (3, 1), (0, 2)]
        assert [(one.turn.dialogue, one.seed) for one in least] == [(1, 2), (1, 1)]
        assert [round(one.gain, 6) for one in most] == [1.2, 0.6, 0.2]
        assert list(most[0].turn.rows) == [2]
        turns[3].rows[2]["responses"]["rl"]["overall"]["unseen"] = None
        assert extremes(turns, "unseen", 1)[0][0].seed == 1

    def test_what_was_said_is_shown_once(self, run):
        done = here("dialogue", *f"samples --run {run} --dialogues 3".split())
        assert done.returncode == 0, done.stderr
        assert re.findall(r"^Dialogue (\d+)$", done.stdout, re.MULTILINE) == ["7", "12", "30"]
        assert done.stdout.count("What is new?") == 1
        # What a person said there is the first of the answers, and no line of its own.
        assert "Hello there." not in done.stdout
        assert done.stdout.count("person: Try <movie>!") == 3

    def test_data_reach_the_terminal_as_printable_characters(self):
        turns = answered_turns({1: [answered(1, 1, EVIL)]})
        lines = list(as_text([turns], 4))
        assert any("alert(1)" in line for line in lines)
        assert all(line.isprintable() for line in lines)

    def test_systems_stand_side_by_side_a_training_a_row(self):
        row = answered(1, 1, EVIL)
        row["responses"]["rl"]["overall"]["llama"] = None
        lines = as_markdown([answered_turns({4: [row], 5: [row]})], 4)
        assert any("*feels:* happy; *recommended:* Heat (1995)" in line for line in lines)
        table = lines[lines.index("| training | supervised | best of 4 | RL |") :]
        assert [line.split(" |")[0] for line in table[2:4]] == ["| seed 4", "| seed 5"]
        assert all(line.count("|") == 5 for line in table[:4])
        assert "*(critic 0.50, rules 0.40, unseen 0.30, llama –)*" in table[2]


class Page(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.images, self.ids = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "img":
            self.images.append(dict(attrs)["alt"])


class TestReport:
    def test_page_is_whole_and_fetches_and_runs_nothing(self, written):
        out, study = written, sorted(written.parent.glob("seed-*"))
        names = ["comparison.html", "comparison.md", "samples.md", *FIGURES]
        assert sorted(path.name for path in out.iterdir()) == sorted(names)
        markdown, page = ((out / f"comparison.{kind}").read_text() for kind in ("md", "html"))
        assert f"**{headline(load_study(study))}**" in markdown.splitlines()[4]
        for run in load_study(study):
            assert all(line in markdown for line in verdicts(run.evaluation))
        assert "ecr_bleu_4" in markdown
        assert statement(evaluation()) in markdown
        assert all(f"| {head} |" in markdown for head in HEADS)
        assert all(f"]({name})\n**Figure " in markdown for name in FIGURES)
        parsed = Page(page)
        inner = [address for address in parsed.addresses if address.startswith("#")]
        data = [address for address in parsed.addresses if address.startswith("data:image/svg+xml")]
        assert len(inner) + len(data) == len(parsed.addresses)
        assert len(data) == 4
        assert {address[1:] for address in inner} <= set(parsed.ids)
        assert len(set(parsed.ids)) == len(parsed.ids)
        assert all(len(alternative) > 40 for alternative in parsed.images)
        assert not parsed.tags & {"script", "link", "iframe"}
        assert page.count("<figcaption>") == 4
        assert "Content-Security-Policy" in page
        assert "&lt;script&gt;alert(1)" in page
        assert re.findall(r">Dialogue (\d+)</h3>", page) == ["7", "12", "30"]
        samples = (out / "samples.md").read_text()
        assert "<script>" not in samples
        assert "&lt;script>" in samples
        assert "3 of 3 test dialogues, drawn by seed 42 and picked by nobody" in samples
        assert "### Dialogue 30" in samples

    def test_the_same_report_is_the_same_bytes(self, written, tmp_path):
        again = write(three(tmp_path), tmp_path, "--dialogues", 3)
        for path in written.iterdir():
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name

    def test_a_missing_stage_is_one_line_and_nothing_is_written(self, run, tmp_path):
        recommender, critic = write_stages(tmp_path)
        words = ["report", "--runs", run, "--out", tmp_path / "out", "--recommender", recommender]
        done = here("dialogue", *words, "--critic", tmp_path / "none.json")
        assert done.returncode == 1
        assert (
            "none.json: no such file; run `python -m shielded_recrl.dialogue critic`" in done.stderr
        )
        write_json(critic, {"heads": {}})
        with pytest.raises(UserError, match="no corruptions"):
            load_critic(critic)
        assert not (tmp_path / "out").exists()

    def test_it_needs_no_torch(self, run, tmp_path):
        recommender, critic = write_stages(tmp_path)
        words = ["report", "--runs", run, "--recommender", recommender, "--critic", critic]
        command = [str(word) for word in ("dialogue", *words, "--out", tmp_path / "out")]
        code = (
            "import atexit, runpy, sys; sys.argv = sys.argv[1:]\n"
            "import shielded_recrl.dialogue.compare, shielded_recrl.dialogue.samples\n"
            "atexit.register(lambda: print('torch' in sys.modules))\n"
            "runpy.run_module('shielded_recrl.dialogue', run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False"

    @pytest.mark.parametrize("width", [1280, 400])
    def test_nothing_sticks_out_of_a_window(self, written, width, chromium_page):  # noqa: F811
        chromium_page.set_viewport_size({"width": width, "height": 900})
        chromium_page.goto((written / "comparison.html").as_uri())
        assert chromium_page.evaluate("document.documentElement.scrollWidth") == width
        # What is wider than a narrow window moves within its own frame, and stays legible.
        drawn = "[...document.images].map(one => [one.naturalWidth, one.clientWidth])"
        for natural, shown in chromium_page.evaluate(drawn):
            assert shown > 0.7 * natural
        assert chromium_page.problems == []


def test_compare_prints_the_table_and_the_verdict(run):
    done = here("dialogue", *f"compare --runs {run}".split())
    assert done.returncode == 0, done.stderr
    assert "overall, unseen" in done.stdout
    assert "+0.050 [+0.040, +0.060]" in done.stdout
    assert all(line in done.stdout for line in verdicts(evaluation()))
    assert "That is one training" in done.stdout


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
