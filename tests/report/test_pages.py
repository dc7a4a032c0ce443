"""Markdown pages as HTML files."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.markdown import in_cell, table
from shielded_recrl.report.pages import document, main

NOWHERE = Path("/nonexistent")
HOSTILE = "![x](https://evil.example/t.png) [here](https://evil.example) <https://evil.example> *a*"


class Tags(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_tables_and_headings_become_html():
    page = Tags(document("# Title & more\n\n| a | verdict |\n|---|---|\n| 1 | failed |\n", NOWHERE))
    assert len(page.named("h1")) == 1
    assert [cell.get("class") for cell in page.named("td")] == [None, "failed"]
    assert "Title & more" in page.text


def test_html_and_scripts_of_a_text_are_shown_and_not_run():
    hostile = '# T\n\n<script>alert(1)</script> <img src=x onerror="alert(1)">\n\n[x](javascript:alert(1))\n'
    page = Tags(document(hostile, NOWHERE))
    assert not page.named("script")
    assert not page.named("img")
    assert not page.named("a")
    assert "<script>alert(1)</script>" in page.text


def test_a_title_cannot_leave_its_tag():
    page = Tags(document("# </title><script>alert(1)</script>\n", NOWHERE))
    assert not page.named("script")


def paragraph(text):
    """Tags of a page whose one cell, paragraph and point is the text."""
    quoted = in_cell(text)
    lines = [*table(["text"], [[quoted]]), "", f"It says {quoted}", "", f"- note: {quoted}", ""]
    return Tags(document("\n".join(lines), NOWHERE))


def test_the_markup_of_a_text_is_shown():
    page = paragraph(HOSTILE)
    assert page.text.count(HOSTILE) == 3
    assert not {"a", "img", "em", "strong"} & {name for name, _ in page.tags}


@given(st.text("aB1 _*~`[]()!<>#&;|\\:/\"'-", max_size=30))
def test_no_text_is_markup(text):
    plain = " ".join(text.split())
    page = paragraph(f"x {text} x")
    kinds = {"html", "head", "meta", "title", "style", "body", "main", "div", "table", "thead"}
    assert {name for name, _ in page.tags} <= kinds | {"tbody", "tr", "th", "td", "p", "ul", "li"}
    assert page.text.count(f"x {plain} x" if plain else "x x") >= 3


def test_names_in_code_stay_as_they_are():
    assert in_cell("no_proj: 1.5% (-0.2)") == "no_proj: 1.5% (-0.2)"


def test_nothing_can_be_fetched():
    """Links of the page's own can be followed by a reader, and everything else is forbidden."""
    page = Tags(document("# T\n\n![x](https://evil.example/t.png)\n", NOWHERE))
    assert page.named("meta")[-1] == {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    }
    assert not page.named("img")


def test_images_beside_the_page_are_in_it(tmp_path):
    (tmp_path / "card.md").write_text('# Card\n\nSee ![the "curve"](curve.svg) and ![](b.png).\n')
    (tmp_path / "curve.svg").write_text("<svg/>")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    main(sources=(tmp_path / "card.md",), outs=(tmp_path / "out/card.html",))
    curve, figure = Tags((tmp_path / "out/card.html").read_text()).named("img")
    assert curve["alt"] == 'the "curve"'
    kind, _, data = curve["src"].partition(",")
    assert (kind, base64.b64decode(data)) == ("data:image/svg+xml;base64", b"<svg/>")
    assert figure["src"] == "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


@pytest.mark.parametrize(
    "source", ["missing.svg", "../secret.svg", "secret.txt", "folder/a.svg", "//host/a.svg", "."]
)
def test_of_other_images_the_description_is_left(tmp_path, source):
    folder = tmp_path / "page"
    (folder / "folder").mkdir(parents=True)
    for path in (tmp_path / "secret.svg", folder / "secret.txt", folder / "folder/a.svg"):
        path.write_text("<svg/>")
    page = Tags(document(f"![the <curve>]({source})\n", folder))
    assert not page.named("img")
    assert "the <curve>" in page.text


def test_an_image_with_text_below_is_a_figure_with_its_caption(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    text = "# T\n\n![drawn](a.svg)\n**Figure 1.** What <b>it</b> is.\n\n![alone](a.svg)\n\nText.\n"
    page = document(text, tmp_path)
    first, second = page.split("<figure>")[1:]
    assert (
        "<figcaption><strong>Figure 1.</strong> What &lt;b&gt;it&lt;/b&gt; is.</figcaption>"
        in first
    )
    assert first.rstrip().endswith("</figure>")
    assert second.endswith("</figure>\n<p>Text.</p>\n</main>\n</body>\n</html>\n")
    assert "figcaption" not in second
    assert [image["alt"] for image in Tags(page).named("img")] == ["drawn", "alone"]
    # What is no image of the page's own is no figure.
    assert "<figure>" not in document("![gone](b.svg)\nText below it.\n", tmp_path)


def test_headings_can_be_linked_to_and_columns_have_a_scope():
    text = "# A title!\n\n[there](#seed-1)\n\n## Seed 1\n\n## Seed 1\n\n| a |\n|---|\n| b |\n"
    page = Tags(document(text, NOWHERE))
    assert [page.named(tag)[0]["id"] for tag in ("h1", "h2")] == ["a-title", "seed-1"]
    assert page.named("h2")[1]["id"] == "seed-1-1"
    assert page.named("a") == [{"href": "#seed-1"}]
    assert page.named("th") == [{"scope": "col"}]


def test_files_are_written_in_order(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.md").write_text(f"# Page {name}\n")
    main(
        sources=(tmp_path / "a.md", tmp_path / "b.md"),
        outs=(tmp_path / "out/a.html", tmp_path / "out/b.html"),
    )
    assert "<title>Page b</title>" in (tmp_path / "out/b.html").read_text()


def test_a_page_that_is_missing_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "a.md").write_text("# A\n")
    with pytest.raises(UserError, match=r"b\.md: not a readable page"):
        main(
            sources=(tmp_path / "a.md", tmp_path / "b.md"),
            outs=(tmp_path / "a.html", tmp_path / "b.html"),
        )
    assert not (tmp_path / "a.html").exists()


def test_each_source_needs_its_out(tmp_path):
    with pytest.raises(UserError, match="1 files for 2 --sources"):
        main(sources=(tmp_path, tmp_path), outs=(tmp_path,))
