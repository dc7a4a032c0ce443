"""Scoring filled sheets: raters who answer by a known rule, and sheets with mistakes."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import expit

from human_texts import fill, preferring, write_run
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json
from shielded_recrl.report.human import score, sheet
from shielded_recrl.report.human.key import SWAPPED, read_key
from shielded_recrl.report.human.settings import ScoreSettings, SheetSettings

ORDER = ["shielded", "kl0", "no_proj"]


class Study:
    """A sheet, its key, and what raters make of it."""

    def __init__(self, root, runs, **settings):
        self.root, self.sheet = root, root / "sheet" / "sheet.csv"
        settings = SheetSettings(**{"pairs": 60, "checks": 0.1} | settings)
        sheet.main(runs=runs, out=root / "sheet", key=root / "key.json", settings=settings)
        self.key = read_key(root / "key.json")

    def filled(self, name, answer):
        return fill(self.sheet, self.key, answer, self.root / f"{name}.csv")

    def score(self, *sheets, **settings):
        score.main(
            key=self.root / "key.json",
            sheets=sheets,
            out=self.root / "scores.json",
            page=self.root / "scores.md",
            settings=ScoreSettings(**{"bootstrap": 100} | settings),
        )
        return read_json(self.root / "scores.json")


@pytest.fixture
def study(tmp_path):
    runs = tuple(write_run(tmp_path / "runs", variant) for variant in sorted(ORDER))
    return Study(tmp_path, runs)


def test_raters_of_one_mind_settle_everything(study, capsys):
    sheets = [study.filled(name, preferring(ORDER)) for name in ("ann", "bob")]
    scores = study.score(*sheets)
    assert "2 of 2 raters counted" in capsys.readouterr().out
    for one in scores["raters"]:
        assert (one["attention"], one["consistency"], one["excluded"]) == (1, 1, False)
        assert (one["checks"], one["repeats"], one["missing"]) == (6, 6, [])
        assert sum(one["answers"].values()) == len(study.key.rows) == 72
    (books,) = scores["datasets"].values()
    assert (books["votes"], books["users"]) == (120, 20)
    for pair in books["comparisons"]:
        wins = ORDER.index(pair["a"]) < ORDER.index(pair["b"])
        assert pair["win_rate"] == dict.fromkeys(("mean", "low", "high"), float(wins))
        assert (pair["a_wins"], pair["ties"], pair["b_wins"]) == (40 * wins, 0, 40 * (not wins))
    ranked = sorted(books["strengths"], key=lambda name: -books["strengths"][name]["mean"])
    assert ranked == ORDER
    assert books["agreement"]["alpha"]["mean"] == 1
    assert (books["agreement"]["rows"], books["agreement"]["raters"]) == (60, 2)
    page = (study.root / "scores.md").read_text()
    assert "one tie is added" in page
    page = page.partition("Bradley-Terry strength (")[2]
    assert page.index("| shielded |") < page.index("| kl0 |") < page.index("| no_proj |")


def test_names_of_raters_are_no_markup_and_figures_stay_as_they_are(study):
    study.score(study.filled("*ann* ![x](y)", preferring(ORDER)))
    page = (study.root / "scores.md").read_text()
    assert "| &#42;ann&#42; !&#91;x&#93;(y) |" in page
    assert "| kl0 | no_proj | 1.000 [1.000, 1.000] |" in page


def test_a_rater_of_sides_is_a_coin_and_is_seen_through(study):
    scores = study.score(
        study.filled("left", lambda row: "left"), study.filled("ann", preferring(ORDER))
    )
    left, ann = scores["raters"]
    # Checks are balanced: half of them happen to be right.
    assert (left["name"], left["attention"], left["excluded"]) == ("left", 0.5, True)
    assert left["consistency"] == 0
    assert not ann["excluded"]
    (books,) = scores["datasets"].values()
    assert books["votes"] == 60
    assert books["agreement"] is None
    alone = study.score(study.filled("left", lambda row: "left"), attention_threshold=0.5)
    rates = [pair["win_rate"]["mean"] for pair in alone["datasets"]["books"]["comparisons"]]
    assert rates == [0.5, 0.5, 0.5]


def test_a_noisy_model_is_recovered_within_its_intervals(tmp_path):
    runs = tuple(write_run(tmp_path, variant, users=120, items=2) for variant in sorted(ORDER))
    study = Study(tmp_path, runs, pairs=720, repeats=0, checks=0)
    truth = {"shielded": 0.8, "kl0": 0.0, "no_proj": -0.8}
    rng = np.random.default_rng(3)

    def noisy(row):
        chance = expit(truth[row.left] - truth[row.right])
        return "left" if rng.random() < chance else "right"

    (books,) = study.score(*(study.filled(f"r{n}", noisy) for n in range(3)))["datasets"].values()
    for name, value in truth.items():
        found = books["strengths"][name]
        assert found["low"] < value < found["high"]
        assert found["high"] - found["low"] < 0.4
    for pair in books["comparisons"]:
        chance = expit(truth[pair["a"]] - truth[pair["b"]])
        assert pair["win_rate"]["mean"] == pytest.approx(chance, abs=0.06)
    assert 0 < books["agreement"]["alpha"]["mean"] < 0.4


def test_ties_and_consistency(study):
    def torn(row):
        return row.sound or ("tie" if row.kind == "pair" else "left")

    scores = study.score(study.filled("torn", torn))
    (one,) = scores["raters"]
    assert (one["consistency"], one["repeats"]) == (0, 6)
    for pair in scores["datasets"]["books"]["comparisons"]:
        assert pair["win_rate"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
        assert pair["ties"] == 20
    by_id = {row.id: row for row in study.key.rows}
    again = next(row for row in study.key.rows if row.kind == "repeat")
    # The same text is preferred when its side has changed.
    answer = preferring(ORDER)
    assert answer(again) == SWAPPED[answer(by_id[again.of])]


def test_missing_answers_are_named_or_left_out(study):
    blank = study.key.of_kind("pair")[0]
    answer = preferring(ORDER)
    path = study.filled("ann", lambda row: "" if row.id == blank.id else answer(row))
    place = [row.id for row in study.key.rows].index(blank.id) + 1
    with pytest.raises(UserError, match=re.escape(f"ann.csv: row {place} ({blank.id}): no answer")):
        study.score(path)
    assert not (study.root / "scores.json").exists()
    scores = study.score(path, missing="skip")
    assert scores["raters"][0]["missing"] == [blank.id]
    assert scores["datasets"]["books"]["votes"] == 59


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, '"99","zzzzzz","","","","","left",""'], "line 74: id 'zzzzzz'"),
        (lambda lines: [*lines, lines[1]], r"row 1 \(\w+\): answered twice"),
        (lambda lines: lines[:-2], r"row 71 \(\w+\): missing; row 72 \(\w+\): missing"),
        (lambda lines: [line.replace('"id"', '"code"') for line in lines], "one column 'id'"),
        (lambda lines: [], "found columns none"),
    ],
)
def test_mistakes_in_a_sheet_are_named(study, change, message):
    path = study.filled("ann", preferring(ORDER))
    lines = quoted_lines(path)
    path.write_text("\n".join(change(lines)), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        study.score(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def quoted_lines(path):
    """Lines of a filled sheet, every cell quoted."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [",".join(f'"{cell}"' for cell in row) for row in csv.reader(stream)]


def test_invalid_answers_are_named_and_many_are_counted(study):
    path = study.filled("ann", lambda row: "maybe")
    with pytest.raises(UserError, match=r"row 1 \(\w+\): 'maybe' is no answer.*and 62 more"):
        study.score(path, missing="skip")


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8-sig", ","), ("cp1252", ";"), ("utf-8", "\t")]
)
def test_what_spreadsheets_make_of_a_sheet_is_read(study, encoding, delimiter):
    path = study.filled("ann", preferring(ORDER))
    expected = score.read_sheet(path, study.key)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [[*row[::-1]] for row in csv.reader(stream)]
    rows = [
        rows[0],
        *([row[0] + "Qualité", " " + row[1].upper() + " ", *row[2:]] for row in rows[1:]),
    ]
    with path.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([*rows, [""] * 8])
    assert score.read_sheet(path, study.key) == expected


def test_nobody_left_and_the_same_name_twice_are_refused(study, tmp_path):
    left = study.filled("left", lambda row: "left")
    with pytest.raises(UserError, match="all 1 raters pass less than 80%"):
        study.score(left)
    (tmp_path / "other").mkdir()
    twin = left.rename(tmp_path / "other" / "ann.csv")
    ann = study.filled("ann", preferring(ORDER))
    with pytest.raises(UserError, match="a second sheet of 'ann'"):
        study.score(ann, twin)


def test_scores_do_not_depend_on_the_order_of_rows(study):
    path = study.filled("ann", preferring(ORDER))
    first = study.score(path)
    header, *lines = quoted_lines(path)
    path.write_text("\n".join([header, *lines[::-1]]), encoding="utf-8")
    assert study.score(path) == first


def test_the_commands_run_as_a_reader_would_run_them(tmp_path):
    runs = [write_run(tmp_path / "runs", variant, users=6) for variant in ("shielded", "no_proj")]

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "shielded_recrl.report.human", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    usage = call("--help").stdout
    assert usage.startswith("usage: python -m shielded_recrl.report.human COMMAND")
    drawn = call(
        *("sheet", "--runs", *runs, "--out", "sheet", "--key", "key.json", "--pairs", 10),
        *("--checks", 0.2, "--question", "Which?"),
    )
    assert drawn.returncode == 0, drawn.stderr
    key = read_key(tmp_path / "key.json")
    assert key.question == "Which?"
    fill(tmp_path / "sheet/sheet.csv", key, preferring(["shielded", "no_proj"]), tmp_path / "a.csv")
    scored = call(*"score --key key.json --sheets a.csv --out s.json --page s.md".split())
    assert scored.returncode == 0, scored.stderr
    assert read_json(tmp_path / "s.json")["datasets"]["books"]["votes"] == 10
    assert "# Human study" in (tmp_path / "s.md").read_text()
    empty = call(*"score --key key.json --sheets sheet/sheet.csv --out s.json --page s.md".split())
    assert empty.returncode == 1
    (line,) = empty.stderr.splitlines()
    assert "row 1" in line
    assert "no answer" in line
