"""The report is one file: without a network, every category opens and every figure is drawn."""

import re

import pytest

from browser import chromium, chromium_page  # noqa: F401
from planted import SECRETS, names_in

pytestmark = pytest.mark.slow

CATEGORIES = (
    *("1. Criteria", "2. Data", "3. Ranker", "4. Shield", "5. Training", "6. Evidence", "7. Audit"),
)
FIGURES = {
    "3. Ranker": {"curve.svg"},
    "4. Shield": {"ndcg_over_steps.png", "frontier.png"},
    "5. Training": {"ctr_over_steps.png", "overoptimisation.png"},
    "6. Evidence": {"ablation.png", "quality_weight.png", "calibration.png", "texts.png"},
    "7. Audit": {"audits.png"},
}


@pytest.fixture(scope="module")
def report(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    tiny.twin(folder / "twin").run("--report", str(path), environment=SECRETS)
    return path


def test_it_is_one_file_with_every_figure_and_table(report):
    page = report.read_text(encoding="utf-8")
    for name in ("aggregate_results.csv", "success_criteria.csv", "audit.pdf", "criteria.html"):
        assert name in page
    for name in set().union(*FIGURES.values()):
        assert name in page


def test_it_tells_no_key_of_the_environment(report):
    assert names_in(report.read_bytes()) == []


@pytest.fixture
def opened(report, chromium_page):  # noqa: F811
    chromium_page.goto(report.as_uri())
    chromium_page.get_by_role("link", name="1. Criteria").wait_for()
    return chromium_page


def test_criteria_come_first_and_every_category_is_in_the_menu(opened):
    menu = opened.locator("ul li").all_inner_texts()
    shown = [text.strip() for text in menu if re.match(r"\d\. ", text.strip())]
    assert tuple(shown) == CATEGORIES
    assert opened.problems == []


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_figure_and_page_of_a_category_opens(opened, category):
    opened.get_by_role("link", name=category, exact=True).click()
    rows = opened.locator("tbody tr")
    rows.first.wait_for()
    drawn, pages = set(), 0
    results = opened.evaluate("results")
    own = opened.evaluate(f"Object.values(categories[{category!r}]).flat()")
    assert len(own) == rows.count() > 0
    for path in own:
        result = results[path]
        assert "system-message" not in result["caption"]
        eye = rows.filter(has=opened.get_by_text(result["labels"]["what"], exact=True)).locator("a")
        if result["mime_type"].startswith("image/"):
            eye.first.click()
            opened.wait_for_function(
                "uri => [...document.images].some(i => i.src == uri && i.naturalWidth > 100)",
                arg=result["data_uri"],
            )
            drawn.add(result["name"])
        elif result["mime_type"] == "text/html":
            eye.first.click()
            frame = opened.frame_locator("iframe")
            frame.locator("h1").wait_for()
            assert len(frame.locator("h1").inner_text()) > 3
            widths = frame.locator("img").evaluate_all(
                "all => Promise.all(all.map(one => one.decode().then(() => one.naturalWidth)))"
            )
            assert all(width > 100 for width in widths)
            pages += 1
    assert drawn == FIGURES.get(category, set())
    assert pages == sum(results[path]["mime_type"] == "text/html" for path in own)
    assert opened.problems == []


def test_nothing_is_fetched_from_elsewhere(opened):
    for category in CATEGORIES:
        opened.evaluate("category => app.showCategory(category)", category)
    opened.wait_for_timeout(200)
    assert opened.problems == []
