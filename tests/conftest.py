"""Fixtures shared by all tests."""

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each waits minutes for a run of its own: the first modules that the workers get. Slurm mostly waits.
LONGEST = (
    *("test_slurm", "test_real", "test_end_to_end", "test_chaos", "test_storage", "test_branch"),
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real raw files; set RECRL_SHARED_DATA, or keep it at ../shared/data."""
    folder = Path(os.environ.get("RECRL_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RECRL_SHARED_DATA to a folder that has it")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all modules without a search for garbage among them: four tenths of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, so that no worker waits for another in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[int, bool]:
        workflow = "workflow" in item.path.parts
        longest = item.path.stem in LONGEST
        first = LONGEST.index(item.path.stem) if longest else len(LONGEST) + (not workflow)
        return first, item.path not in slow

    items.sort(key=place)
