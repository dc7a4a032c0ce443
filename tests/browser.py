"""A headless Chromium for tests of pages: `from browser import chromium_page` in a test module.

Chromium is looked for at RECRL_CHROMIUM and on the PATH, and never downloaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# What a page may load from: itself, files, and data in it.
LOCAL = ("127.0.0.1", "localhost", "")


def find_chromium() -> str | None:
    """Path of a Chromium; None where there is none."""
    if named := os.environ.get("RECRL_CHROMIUM"):
        return named if Path(named).is_file() else None
    return next(filter(None, map(shutil.which, NAMES)), None)


# Playwright keeps an event loop in its thread while it is open, so it closes with the module.
@pytest.fixture(scope="module")
def chromium() -> Iterator:
    """A running browser; skips where Chromium or playwright is missing."""
    path = find_chromium()
    if path is None:
        pytest.skip(f"no Chromium: set RECRL_CHROMIUM, or put {' or '.join(NAMES)} on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    # Chromium refuses to run as root in its sandbox, as containers do.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def chromium_page(chromium) -> Iterator:
    """A playwright page, 1280 x 900, that reaches nothing outside of this machine.

    `page.problems` lists errors on the console, exceptions in scripts, and every request to
    elsewhere, which is refused.
    """
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.problems = []

    def watch(route) -> None:
        if (urlsplit(route.request.url).hostname or "") in LOCAL:
            route.continue_()
        else:
            page.problems.append(f"request to {route.request.url}")
            route.abort()

    page.route("**/*", watch)
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    yield page
    context.close()
