"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real raw files; set RECRL_SHARED_DATA, or keep it at ../shared/data."""
    folder = Path(os.environ.get("RECRL_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RECRL_SHARED_DATA to a folder that has it")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The workflow's tests take longest: first, so that no worker waits for them in the end."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)
