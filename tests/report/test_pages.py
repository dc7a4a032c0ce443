"""Markdown pages as HTML files."""

from html.parser import HTMLParser

import pytest

from shielded_recrl.errors import UserError
from shielded_recrl.report.pages import document, main


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
    page = Tags(document("# Title & more\n\n| a | verdict |\n|---|---|\n| 1 | failed |\n"))
    assert len(page.named("h1")) == 1
    assert [cell.get("class") for cell in page.named("td")] == [None, "failed"]
    assert "Title & more" in page.text


def test_html_and_scripts_of_a_text_are_shown_and_not_run():
    hostile = '# T\n\n<script>alert(1)</script> <img src=x onerror="alert(1)">\n\n[x](javascript:alert(1))\n'
    page = Tags(document(hostile))
    assert not page.named("script")
    assert not page.named("img")
    assert not page.named("a")
    assert "<script>alert(1)</script>" in page.text


def test_a_title_cannot_leave_its_tag():
    page = Tags(document("# </title><script>alert(1)</script>\n"))
    assert not page.named("script")


def test_nothing_is_fetched():
    page = document("# T\n\ntext\n")
    assert "http" not in page
    assert "url(" not in page


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
