"""Texts of data and models are shown on every page, and are markup, script or command on none."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_document import SOUND, audit, summed_up
from human_texts import write_run
from shielded_recrl.report import datasets, explanations
from shielded_recrl.report.human.key import Row
from shielded_recrl.report.human.page import to_markdown
from shielded_recrl.report.human.sheet import to_csv, to_html
from shielded_recrl.report.pages import document
from shielded_recrl.report.runs import Run
from shielded_recrl.report.tables import escape

NOWHERE = Path("/nonexistent")
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "picture": "![x](https://evil.example/t.png)",
    "link": "[x](javascript:alert(1))",
    "address": "<javascript:alert(1)> <https://evil.example>",
    "reference": "[x]: javascript:alert(1) 'y' [x] [x][x]",
    "entity": "&lt;script&gt;alert(1)&lt;/script&gt; &#60;b&#62;",
    "cell": "a | b |\n\n# heading\n\n| c |\n|---|\n```html\n<b>x</b>\n```",
    "end": "</td></table></title></style><svg onload=alert(1)>",
    "template": "{{ 7*7 }} {% raw %} ${7*7} #{7*7}",
    "latex": r"\input{/etc/passwd} \write18{id} $x^2$ %",
    "formula": '=HYPERLINK("http://evil.example","x")',
}
FRAME = {"html", "head", "meta", "title", "style", "body", "div", "h1", "h2", "h3", "p", "ul", "li"}
FRAME |= {"main", "table", "thead", "tbody", "tr", "th", "td", "strong", "code"}
SHEET = FRAME | {"ol", "br", "caption", "colgroup", "col", "span", "small", "em"}


class Page(HTMLParser):
    """Tags and attributes of a page, and what it says."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.says = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.says += data


def assert_harmless(page: str, text: str, allowed: set[str] = FRAME) -> None:
    """The page shows the text as it is, and nothing came of it."""
    found = Page(page)
    assert found.tags <= allowed
    assert not [one for one in found.attributes if one[0].startswith("on")]
    assert not {"src", "href", "action", "srcdoc"} & {name for name, _ in found.attributes}
    assert " ".join(text.split()) in " ".join(found.says.split())
    assert "default-src 'none'" in page


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE.keys())
def text(request) -> str:
    return request.param


def run_of(folder: Path, **changes) -> Run:
    """A run of which the page of explanations reads the texts."""
    written = write_run(folder, "shielded", users=2, change=lambda row: row | changes)
    stats = {"synthetic": True, "sequential": True}
    return Run(written, "books", "shielded", 42, {}, {}, {}, [], {}, stats)


@pytest.mark.parametrize("field", ["title", "text", "categories", "history"])
def test_explanations(tmp_path, text, field):
    value = [text] if field in ("categories", "history") else text
    page = explanations.page([run_of(tmp_path, **{field: value})])
    assert_harmless(document(page, NOWHERE), text)


def test_audits(tmp_path, text):
    """The page and the PDF, of texts, findings and the name of a scorer."""
    worst = [
        {"user": 1, "item": 1, "position": 1, "before": {"score": 0.1, "text": "x"}}
        | {"after": {"score": 0.6, "text": text}}
    ]
    found = audit({"toxicity.worst": worst, "toxicity.scorer": text}, findings=[text])
    assert found["toxicity"] != SOUND["toxicity"]
    summed_up(tmp_path, found)
    page = document((tmp_path / "audit.md").read_text(), NOWHERE)
    assert_harmless(page, text)
    # Outside of what is drawn: addresses, scripts, files and forms, which a reader may act on.
    pdf = re.sub(rb"stream\n.*?\nendstream", b"", (tmp_path / "audit.pdf").read_bytes(), flags=re.S)
    assert b"/Page" in pdf
    assert not re.findall(rb"/(?:URI|JS|JavaScript|Launch|EmbeddedFile|Annot)\b", pdf)


def test_datasets(text):
    stats = {
        **{"dataset": "books", "synthetic": False, "sequential": True, "rows_read": 9, "kept": 9},
        **{"users": 3, "items": 3, "density": 1.0, "dropped": {text: 1}, "inputs": {text: "00"}},
        "splits": {"train": 7, "valid": 1, "test": 1},
    }
    assert_harmless(document(datasets.page([stats]), NOWHERE), text)


def test_scores_of_the_human_study(text):
    """A rater is called as their file is."""
    rater = {
        **{"name": text, "answers": dict.fromkeys(("left", "right", "tie"), 1), "missing": []},
        **{"checks_passed": 1, "checks": 1, "repeats_same": 1, "repeats": 1, "excluded": False},
    }
    scores = {"question": text, "regularisation": "None.", "raters": [rater], "datasets": {}}
    page = document(to_markdown(scores, "Scores"), NOWHERE)
    assert_harmless(page, text)
    assert Page(page).says.count(" ".join(text.split())[:12]) >= 2


def test_the_sheet_of_the_human_study(text):
    row = Row(
        **{"id": "r1", "kind": "pair", "dataset": "books", "seed": 1, "user": 1, "item": 1},
        **{"history": [text], "title": text, "categories": [text], "left_text": text},
        **{"right_text": "x", "left": "shielded", "right": "before"},
    )
    assert_harmless(to_html([row], "Which?"), text, SHEET)
    # A spreadsheet computes what begins so.
    for cell in re.findall(r'"((?:[^"]|"")*)"', to_csv([row])):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_a_tag_of_ours_would_be_seen():
    with pytest.raises(AssertionError):
        assert_harmless("<p><b>x</b></p> default-src 'none'", "x")
    with pytest.raises(AssertionError):
        assert_harmless("<p onclick=x>x</p> default-src 'none'", "x")


COMMANDS = re.compile(r"\\(?:[&%$#_{}]|textbackslash\{\}|textasciitilde\{\}|textasciicircum\{\})")


@given(st.text("ab\\{}$&%#_^~ \n" + "input", max_size=40))
def test_latex_prints_a_text_and_obeys_none(text):
    """Nothing special is left but the escapes of single characters."""
    assert not set(COMMANDS.sub("", escape(text))) & set("\\{}$&%#_^~")
