"""The pages, by Flask's test client and in headless Chromium."""

import html
import re
import threading
from urllib.parse import quote

import pytest
from werkzeug.serving import make_server

from browser import chromium, chromium_page  # noqa: F401
from shielded_recrl.explain.page import LOOPBACK, create_app

BOTH = "/books/4?run=shielded-5&compare=no_proj-5&k=3"


@pytest.fixture
def client(library):
    return create_app(library, list(LOOPBACK)).test_client()


@pytest.fixture
def get(client):
    """The text of a page, which comes with a status."""

    def read(path, status=200):
        response = client.get(path)
        assert response.status_code == status, response.text
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        return response.text

    return read


@pytest.fixture
def reader(library):
    """A user whose history names the item with markup in its title."""
    dataset = library.dataset("books")
    return next(user for user in range(1, 25) if 1 in dataset.history(user))


def words(page):
    """What a page says, markup taken out."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_home_lists_datasets_and_finished_runs(get):
    page = get("/")
    text = words(page)
    assert 'href="/books/"' in page
    assert "shielded seed 5 no_proj seed 5 separate seed 5 activated seed 5" in text
    assert "steam No run is finished." in text


def test_users_are_listed_by_part(get, library):
    page = get("/books/")
    assert re.findall(r'href="/books/(\d+)"', page) == [str(user) for user in range(1, 25)]
    assert "24 users and 20 items" in words(page)
    heldout = library.dataset("books").roles.heldout.tolist()
    page = get("/books/?role=heldout")
    assert re.findall(r'href="/books/(\d+)"', page) == [str(user) for user in heldout]
    assert "No user has this part" in get("/books/?role=none")


def test_a_user_is_found_by_either_id(client):
    for name in ("7", "u7"):
        response = client.get(f"/books/?user={name}")
        assert (response.status_code, response.location) == (302, "/books/7")


def test_a_user_is_served_what_the_library_answers(get, library):
    text = words(get("/books/4?k=3"))
    answer = library.recommend("books", "shielded", 5, 4, 3)
    assert "Source id u4" in text
    for one in answer.recommendations:
        said = " ".join(one.explanation.split())
        shown = re.sub(r"[✓✗] \((not )?supported\)| (?=[✓✗])", "", text)
        assert one.thing.title in text
        assert f"{one.score:.3f}" in text
        assert re.sub(r"\W", "", said) in re.sub(r"\W", "", shown)
    for past in answer.history:
        assert past.thing.title in text
    assert "The two lists" not in text


def test_claims_are_marked(get, library):
    marks = [
        (claim.text, claim.supported)
        for user in range(1, 13)
        for one in library.recommend("books", "shielded", 5, user, 5).recommendations
        for claim in one.claims
    ]
    assert marks
    found = []
    for user in range(1, 13):
        page = get(f"/books/{user}").split('class="note legend"')[0]
        found += [
            (html.unescape(text), kind == "supported")
            for kind, text in re.findall(r'<mark class="(\w+)">([^<]*)<span', page)
        ]
    assert found == marks


def test_two_runs_side_by_side(get, library):
    page = get(BOTH)
    assert page.count("<article") == 6
    first, second = (library.recommend("books", v, 5, 4, 3) for v in ("shielded", "no_proj"))
    titles = [html.unescape(text) for text in re.findall(r"<h3>.*?<bdi>(.*?)</bdi>", page)]
    assert titles[::2] == [one.thing.title for one in first.recommendations]
    assert titles[1::2] == [one.thing.title for one in second.recommendations]
    assert page.count('class="move') == 3
    for other in (3, 5):
        query = "?run=shielded-5&amp;compare=no_proj-5&amp;k=3"
        assert f'href="/books/{other}{query}"' in page
    assert "The two lists are the same." in get("/books/4?run=shielded-5&compare=shielded-5")


def test_markup_of_titles_is_text(get, reader):
    page = get(f"/books/{reader}")
    assert "<script" not in page
    assert "&lt;script&gt;document.title" in page


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/books/999", 404, "books has no user 999; its users are 1 to 24."),
        ("/books/0", 404, "books has no user 0"),
        ("/books/" + "1" * 5000, 404, "There is no such page."),
        ("/books/?user=" + "1" * 5000, 404, "books has no user '111"),
        ("/books/4?k=" + "0" * 8 + "1" * 5000, 400, "k: expected a whole number from 1 to 20"),
        ("/books/4?k=0000000011", 400, "k: expected a whole number from 1 to 20"),
        ("/books/?user=nobody", 404, "books has no user 'nobody': expected 1 to 24"),
        ("/films/", 404, "--dataset films: not in the study, which has books, steam"),
        ("/books/4?run=shielded-6", 404, "There is no finished run 'shielded-6'"),
        ("/books/4?k=0", 400, "k: expected a whole number from 1 to 20, got '0'"),
        ("/books/4?k=" + "9" * 50, 400, "k: expected a whole number from 1 to 20"),
        ("/books/?role=king", 404, "There is no role 'king'"),
        ("/books/?page=2", 400, "page: expected a whole number from 1 to 1"),
        ("/books/4/5", 404, "There is no such page."),
        ("/books/?user=" + quote("<b>"), 404, "books has no user '<b>'"),
    ],
)
def test_what_there_is_not_is_said_in_plain_words(get, path, status, message):
    page = get(path, status)
    assert message in words(page)
    assert "<b>" not in page


def test_an_unfinished_dataset_names_its_command(get):
    assert "results/data/steam" in words(get("/steam/1", 404))
    assert "snakemake --cores all" in words(get("/steam/", 404))


def test_other_host_names_are_refused(client):
    response = client.get("/", headers={"Host": "elsewhere.example"})
    assert (response.status_code, response.text) == (400, "This address is not served.\n")
    assert client.get("/", headers={"Host": "localhost:8000"}).status_code == 200


@pytest.fixture
def address(library):
    """The pages on a port of this machine."""
    server = make_server("127.0.0.1", 0, create_app(library), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_browsing_in_chromium(address, chromium_page, reader):  # noqa: F811
    from playwright.sync_api import expect

    page = chromium_page
    page.goto(address)
    page.get_by_role("link", name="books").click()
    page.get_by_label("User, by number or by id of the source").fill(f"u{reader}")
    page.get_by_role("button", name="Open").click()
    expect(page).to_have_url(f"{address}/books/{reader}")
    expect(page).to_have_title(f"User {reader} of books · Shielded RecRL")
    page.get_by_label("Beside it").select_option("no_proj, seed 5")
    page.get_by_label("Items").fill("2")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("article")).to_have_count(4)
    page.get_by_text("more that it does not read").click()
    expect(page.get_by_text("<script>").first).to_be_visible()
    # The style sheet was read: a card has its own colour.
    card, paper = (
        page.locator(name).first.evaluate("e => getComputedStyle(e).backgroundColor")
        for name in ("article", "body")
    )
    assert card != paper
    assert page.problems == []


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("path", ["/", "/books/", BOTH, "/books/999"])
def test_pages_fit_their_width(address, chromium_page, width, path):  # noqa: F811
    page = chromium_page
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(address + path)
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    # Each field has a name, and headings begin with the one of the page.
    assert page.evaluate("[...document.querySelectorAll('input, select')].every(e => e.labels[0])")
    assert page.locator("h1").count() == 1
    assert [text for text in page.problems if "404" not in text] == []


def test_columns_stand_side_by_side_where_there_is_room(address, chromium_page):  # noqa: F811
    page = chromium_page
    page.goto(address + BOTH)
    left, right = (page.locator("article").nth(place).bounding_box() for place in (0, 1))
    assert (left["y"], left["width"]) == (right["y"], right["width"])
    assert right["x"] > left["x"] + left["width"]
    page.set_viewport_size({"width": 390, "height": 800})
    left, right = (page.locator("article").nth(place).bounding_box() for place in (0, 1))
    assert left["x"] == right["x"]
    assert right["y"] > left["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(address, chromium_page, scheme):  # noqa: F811
    """WCAG 2.2 asks for a contrast of 4.5 in running text."""
    page = chromium_page
    page.emulate_media(color_scheme=scheme)
    page.goto(address + BOTH)
    pairs = page.evaluate(
        """() => [...document.querySelectorAll('a, p, h1, h2, h3, mark, .tag, .move, button, label')]
        .map(e => {
            let ground = e;
            while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)')
                ground = ground.parentElement;
            return [getComputedStyle(e).color, getComputedStyle(ground).backgroundColor];
        })"""
    )
    assert len(pairs) > 20
    for ink, ground in pairs:
        light, dark = sorted(map(luminance, (ink, ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def luminance(colour):
    """Relative luminance of an rgb(...) colour, by WCAG's definition."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
