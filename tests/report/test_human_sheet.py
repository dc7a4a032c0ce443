"""The blinded sheet: what it shows, what it hides, and what it refuses."""

import csv
import io
import re
import shutil
from collections import Counter, defaultdict
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from browser import chromium, chromium_page  # noqa: F401
from human_texts import STYLES, write_run
from shielded_recrl.errors import UserError
from shielded_recrl.report.human import key as keys
from shielded_recrl.report.human import pairs
from shielded_recrl.report.human.key import Row, read_key
from shielded_recrl.report.human.settings import SheetSettings
from shielded_recrl.report.human.sheet import FORMULA, cell, main, plain, to_csv, to_html

VARIANTS = ("shielded", "no_proj", "kl0")


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "runs", variant) for variant in VARIANTS]


def make(tmp_path, runs, name="study", seed=42, **settings):
    """The files of a sheet, and its key."""
    out, key = tmp_path / name / "sheet", tmp_path / name / "key.json"
    main(runs=tuple(runs), out=out, key=key, settings=SheetSettings(**settings), seed=seed)
    return out, read_key(key)


def cells(out):
    text = (out / "sheet.csv").read_text(encoding="utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


class Text(HTMLParser):
    """Tags and cells of a page, as a browser would take them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.rows, self._open = set(), [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._open = tag in ("td", "th") or (self._open and tag not in ("tr", "table"))

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


def test_sizes_sides_and_comparisons_are_balanced(tmp_path, runs, capsys):
    _, key = make(tmp_path, runs, pairs=60)
    shown = key.of_kind("pair")
    assert [len(key.of_kind(kind)) for kind in ("pair", "repeat", "check")] == [60, 6, 3]
    assert "pairs 60, repeats 6, attention checks 3, comparisons 3" in capsys.readouterr().out
    by_pair = defaultdict(list)
    for row in shown:
        by_pair[frozenset((row.left, row.right))].append(row)
    assert len(by_pair) == 3
    for systems, rows in by_pair.items():
        assert len(rows) == 20
        assert sorted(Counter(row.left for row in rows).values()) == [10, 10]
        # 20 users of three items each: every user once before any comes twice.
        assert len({row.user for row in rows}) == 20
        assert systems < set(VARIANTS)
    # Sides are drawn: not taken in turns down the sheet.
    turns = [row.left < row.right for row in shown]
    assert 15 < sum(first != second for first, second in pairwise(turns)) < 45


def test_what_is_shown_was_written_by_the_system_in_the_key(tmp_path, runs):
    out, key = make(tmp_path, runs, pairs=40)
    for shown, row in zip(cells(out), key.rows, strict=True):
        assert shown["id"] == row.id
        assert (shown["left"], shown["right"]) == (row.left_text, row.right_text)
        assert shown["recommended"] == f"{row.title} (Drama, War)"
        assert shown["history"] == " | ".join(row.history)
        assert shown["answer"] == shown["comment"] == ""
        if row.kind != "check":
            for system, text in ((row.left, row.left_text), (row.right, row.right_text)):
                fixed = max(re.split(r"\{\w+\}", STYLES[system]), key=len)
                assert fixed in text
                # Texts of the last step, whose count is 16 above step 0.
                assert f"Novel {row.item}" in text
    assert [shown["row"] for shown in cells(out)] == [str(n) for n in range(1, len(key.rows) + 1)]


def test_the_sheet_tells_nothing_of_the_key(tmp_path, runs):
    out, key = make(tmp_path, runs, pairs=40)
    assert sorted(path.name for path in out.iterdir()) == ["sheet.csv", "sheet.html"]
    for path in out.iterdir():
        text = path.read_text(encoding="utf-8-sig")
        for word in (*VARIANTS, "repeat", "check", "seed", "sound", "scrambled", "books"):
            assert not re.search(rf"\b{word}\b", text.partition("</style>")[2] or text), word
    ids = [row.id for row in key.rows]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[bcdfghjkmnpqrstvwxz]{6}", one) for one in ids)
    # Kinds are mixed: an id's place tells no more than the id.
    assert ids != sorted(ids)
    assert key.rows[-1].kind != "check" or key.rows[-2].kind != "check"


def test_repeats_swap_sides_and_stand_apart(tmp_path, runs):
    _, key = make(tmp_path, runs, pairs=50, repeats=0.5)
    place = {row.id: number for number, row in enumerate(key.rows)}
    by_id = {row.id: row for row in key.rows}
    assert len({row.of for row in key.of_kind("repeat")}) == 25
    for again in key.of_kind("repeat"):
        first = by_id[again.of]
        assert (again.left, again.right) == (first.right, first.left)
        assert (again.left_text, again.right_text) == (first.right_text, first.left_text)
        assert (again.user, again.item, again.title) == (first.user, first.item, first.title)
        assert place[again.id] - place[first.id] >= 5


def test_attention_checks_have_a_known_answer(tmp_path, runs):
    _, key = make(tmp_path, runs, pairs=40, checks=0.25)
    found = key.of_kind("check")
    assert len(found) == 10
    assert Counter(row.sound for row in found) == {"left": 5, "right": 5}
    for row in found:
        texts = {"left": (row.left, row.left_text), "right": (row.right, row.right_text)}
        name, sound = texts.pop(row.sound)
        ((fault, spoilt),) = texts.values()
        assert name == "sound"
        assert f"Novel {row.item}" in sound
        if fault == "scrambled":
            assert spoilt.split() == sound.split()[::-1]
        else:
            (named,) = set(re.findall(r"Novel \d+", spoilt))
            assert named != f"Novel {row.item}"
            assert spoilt.replace(named, row.title) == sound
    assert {row.left for row in found} == {"sound", "scrambled", "other item"}


def test_the_seed_decides_and_nothing_else(tmp_path, runs):
    first, again, other = (
        make(tmp_path, runs, name, seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in ("sheet.csv", "sheet.html", "../key.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()


def test_before_and_after_training_of_one_run(tmp_path, runs):
    _, key = make(tmp_path, runs[:1], compare="steps", pairs=20)
    (one,) = key.comparisons
    assert (one.a, one.b) == ("shielded", "before")
    for row in key.of_kind("pair"):
        texts = {row.left: row.left_text, row.right: row.right_text}
        assert "shares its mood" in texts["shielded"]
        assert "others did before you" in texts["before"]


def test_several_datasets_and_seeds(tmp_path):
    runs = [
        write_run(tmp_path, variant, seed, dataset)
        for dataset in ("books", "steam")
        for seed in (42, 43)
        for variant in ("shielded", "no_proj")
    ]
    _, key = make(tmp_path, runs, pairs=80)
    assert [(one.dataset, one.contexts) for one in key.comparisons] == [
        ("books", 120),
        ("steam", 120),
    ]
    pairs_shown = key.of_kind("pair")
    assert Counter(row.dataset for row in pairs_shown) == {"books": 40, "steam": 40}
    assert {row.seed for row in pairs_shown} == {42, 43}


def test_identical_texts_are_counted_and_never_shown(tmp_path):
    def same(row):
        odd = row["item"] % 2 and row["step"]
        return row | {"text": f"A text of both systems about {row['title']}."} if odd else row

    runs = [write_run(tmp_path, variant, change=same) for variant in ("shielded", "no_proj")]
    _, key = make(tmp_path, runs, pairs=100)
    (one,) = key.comparisons
    # Three items a user, numbered from 1: two of them are odd.
    assert (one.contexts, one.identical) == (60, 40)
    assert len(key.of_kind("pair")) == 20
    assert all(row.left_text != row.right_text for row in key.of_kind("pair"))
    everywhere = [
        write_run(tmp_path / "all", variant, change=lambda row: row | {"text": "One."})
        for variant in ("shielded", "no_proj")
    ]
    with pytest.raises(UserError, match="all texts are identical"):
        make(tmp_path, everywhere)


HOSTILE = {
    "title": '=HYPERLINK("http://x","y")',
    "history": ["</td><script>alert(1)</script>", "@SUM(A1)", 'a","b\r\n+1'],
    "categories": ["<img src=x onerror=alert(1)>", "-2+3"],
    "text": "  =cmd|' /C calc'!A0\t<b>bold</b> \x00\x1b[31m &amp; \ud800 end of {{ 7*7 }} text",
}


def test_hostile_texts_stay_text(tmp_path):
    runs = [
        write_run(
            tmp_path,
            variant,
            users=4,
            change=lambda row, name=variant: row | HOSTILE | {"text": HOSTILE["text"] + name[0]},
        )
        for variant in ("shielded", "no_proj")
    ]
    out, key = make(tmp_path, runs, pairs=10)
    found = cells(out)
    assert len(found) == len(key.rows)
    for row in found:
        assert None not in row
        assert not any(value.startswith(FORMULA) for value in row.values())
        assert row["recommended"].startswith("'=HYPERLINK")
        assert row["left"].startswith("'=cmd") or row["left"].endswith("=cmd|'")
    raw = (out / "sheet.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    assert b"\x00" not in raw
    page = (out / "sheet.html").read_text(encoding="utf-8")
    parsed = Text(page)
    assert not parsed.tags & {"script", "img", "b", "link", "iframe", "a"}
    header, *body = parsed.rows
    assert header[:5] == ["row", "liked before", "recommended", "left", "right"]
    assert len(body) == len(key.rows)
    for shown, row in zip(body, key.rows, strict=True):
        assert shown[0].endswith(row.id)
        assert shown[3].strip() == plain(row.left_text)
        assert shown[4].strip() == plain(row.right_text)
        assert "<script>alert(1)</script>" in shown[1]
        assert [word in shown[5] for word in ("left", "right", "tie")] == [True] * 3
    assert "default-src 'none'" in page
    assert "{{ 7*7 }}" in page


def test_a_browser_draws_every_row_and_runs_nothing(tmp_path, request):
    long = "Word " * 300 + "x" * 3000
    runs = [
        write_run(
            tmp_path,
            variant,
            users=6,
            change=lambda row, name=variant: (
                row | HOSTILE | {"text": f"{HOSTILE['text']} {long} {name[0]}", "title": long}
            ),
        )
        for variant in ("shielded", "no_proj")
    ]
    out, key = make(tmp_path, runs, pairs=10)
    page = request.getfixturevalue("chromium_page")
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto((out / "sheet.html").as_uri())
    assert page.locator("tbody tr").count() == len(key.rows)
    assert page.locator("tbody tr").first.locator("td").nth(3).inner_text().startswith("=cmd|")
    # The longest word breaks rather than push the answers off the paper.
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    for media in ("screen", "print"):
        page.emulate_media(media=media)
        assert page.evaluate(wide) <= 0
    assert not dialogs
    assert not page.problems


@given(st.text())
def test_no_text_is_a_formula_or_a_second_line(text):
    shown = cell(text)
    assert not shown.startswith(FORMULA)
    assert len(shown.splitlines()) <= 1
    assert shown.encode("utf-8").decode("utf-8") == shown
    rows = list(csv.reader(io.StringIO(to_csv([row_of(text)])[1:], newline="")))
    assert [len(row) for row in rows] == [8, 8]
    assert rows[1][4] == (shown or "(no text)")


@given(st.text())
def test_any_text_survives_the_page(text):
    parsed = Text(to_html([row_of(text)], "Which?"))
    assert parsed.rows[1][3].strip() == (plain(text) or "(no text)")


def row_of(text):
    return Row.model_construct(
        id="bcdfgh", title="Title", categories=[], history=[], left_text=text, right_text="B"
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_ids_differ_and_are_no_numbers(seed, number):
    ids = pairs.draw_ids(number, np.random.default_rng(seed))
    assert len(set(ids)) == number
    assert all(one.isalpha() for one in ids)


def test_a_text_is_spoilt_only_where_that_shows():
    assert pairs.reversed_words("too short to tell") is None
    assert pairs.reversed_words("a b c d e f e d c b a") is None
    one = pairs.Explanation(
        step=16,
        user=1,
        item=1,
        title="Dune",
        categories=[],
        history=["Neuromancer"],
        text="DUNE is like Neuromancer, and dune is long.",
        quality=1.0,
    )
    rng = np.random.default_rng(0)
    titles = ["Dune", "Dune Messiah", "Neuromancer", "It", "Emma & \\1"]
    # Of these, only the last is foreign to user and item, and long enough to be told from a word.
    assert (
        pairs.other_item(one, titles, rng)
        == "Emma & \\1 is like Neuromancer, and Emma & \\1 is long."
    )
    assert pairs.other_item(one, titles[:4], rng) is None
    assert pairs.other_item(one.model_copy(update={"text": "It is long."}), titles, rng) is None


def rewrite(name, old, new):
    def change(folder):
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "explanations.jsonl").unlink(), "explanations.jsonl: no such file"),
        (lambda run: (run / "evaluation.json").unlink(), "evaluation.json: no such file"),
        (
            rewrite("evaluation.json", '"variant"', '"v"'),
            "evaluation.json: variant: Field required",
        ),
        (
            rewrite("explanations.jsonl", '"user": 1}', '"user": "1"}'),
            "line 1: user: Input should be",
        ),
        (rewrite("explanations.jsonl", '"text": ', '"txt": '), "line 1: text: Field required"),
        (rewrite("explanations.jsonl", "Novel 101", "Other"), "tells another title"),
        (rewrite("evaluation.json", '"seed": 42', '"seed": 7'), "no other variant of dataset"),
        (rewrite("evaluation.json", "shielded", "no_proj"), "the same dataset, variant and seed"),
        (lambda run: (run / "explanations.jsonl").write_text(""), "needs texts of step 0"),
    ],
)
def test_runs_that_do_not_serve_are_refused_by_name(tmp_path, runs, change, message):
    change(runs[0])
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        make(tmp_path, runs)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "study").exists()


def test_runs_that_cannot_be_compared_are_refused(tmp_path, runs):
    with pytest.raises(UserError, match="no other variant of dataset 'books' and seed 42"):
        make(tmp_path, runs[:1])
    with pytest.raises(UserError, match="takes runs of one variant"):
        make(tmp_path, runs, compare="steps")
    apart = write_run(
        tmp_path / "apart", "kl0", change=lambda row: row | {"user": row["user"] + 99}
    )
    with pytest.raises(UserError, match="explained no recommendation in common"):
        make(tmp_path, [runs[0], apart])
    twice = tmp_path / "copy"
    shutil.copytree(runs[0], twice)
    with pytest.raises(UserError, match="the same dataset, variant and seed"):
        make(tmp_path, [*runs, twice])


def test_texts_too_short_for_checks_ask_for_none(tmp_path):
    runs = [
        write_run(tmp_path, variant, change=lambda row, v=variant: row | {"text": f"Good {v}."})
        for variant in ("shielded", "no_proj")
    ]
    with pytest.raises(UserError, match="--checks 0"):
        make(tmp_path, runs)
    _, key = make(tmp_path, runs, checks=0, repeats=0)
    assert {row.kind for row in key.rows} == {"pair"}


def test_the_key_does_not_lie_among_the_sheets(tmp_path, runs):
    for key in (tmp_path / "out" / "key.json", tmp_path / "out" / "deep" / "key.json"):
        with pytest.raises(UserError, match="outside"):
            main(runs=tuple(runs), out=tmp_path / "out", key=key, settings=SheetSettings())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"kind": "repeat"', '"kind": "echo"', "kind"),
        ('"sound": "left"', '"sound": null', "has no sound side"),
        ('"rows": [', '"lines": [', "rows: Field required"),
    ],
)
def test_a_damaged_key_is_refused(tmp_path, runs, old, new, message):
    make(tmp_path, runs, checks=0.2)
    path = tmp_path / "study" / "key.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_key(path)
    with pytest.raises(UserError, match="no such file"):
        read_key(tmp_path / "none.json")


def test_swapping_an_answer_twice_gives_it_back():
    assert {keys.SWAPPED[keys.SWAPPED[one]] == one for one in keys.ANSWERS} == {True}
    assert keys.SWAPPED["tie"] == "tie"
