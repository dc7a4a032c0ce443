"""The page of datasets: what was read, dropped and kept."""

from shielded_recrl.files import read_json
from shielded_recrl.report import datasets

STATS = {
    "dataset": "steam",
    "synthetic": False,
    "sequential": False,
    "rows_read": 12345,
    "kept": 9000,
    "users": 300,
    "items": 1200,
    "density": 0.025,
    "dropped": {"no | user": 45, "outside the k-core": 3300},
    "splits": {"train": 8000, "valid": 500, "test": 500},
    "inputs": {"steam.json.gz": "ab" * 32},
}


def tables(page):
    """Cells of the rows of each section's table."""
    return [
        [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")][2:]
        for part in page.split("\n## ")
    ]


def test_one_dataset_by_hand():
    kept, dropped, sources = tables(datasets.page([STATS]))
    name = "steam (Steam)"
    assert kept == [
        [
            *(name, "the owner's files", "none: split at random", "12,345", "9,000", "300"),
            *("1,200", "2.50%", "8,000 / 500 / 500"),
        ]
    ]
    assert dropped == [[name, "no &#124; user", "45"], [name, "outside the k-core", "3,300"]]
    assert sources == [[name, "steam.json.gz", f"`{'ab' * 32}`"]]


def test_embedded_data_are_called_synthetic():
    (row,) = tables(datasets.page([STATS | {"synthetic": True, "sequential": True}]))[0]
    assert row[1:3] == ["embedded, synthetic", "by time"]


def test_where_nothing_was_dropped_the_page_says_so():
    page = datasets.page([STATS | {"dropped": {}}])
    assert "## Rows dropped\n\nNone." in page


def test_every_dataset_of_the_study_has_its_rows(study):
    kept, dropped, sources = tables(datasets.page([read_json(path) for path in study.stats]))
    names = ["books (Amazon reviews)", "ml25m (MovieLens)", "steam (Steam)"]
    assert [row[0] for row in kept] == [row[0] for row in sources] == names
    assert [row[0] for row in dropped] == [name for name in names for _ in range(2)]


def test_names_cannot_leave_their_cells():
    page = datasets.page([STATS | {"inputs": {"a|b\n<script>.csv": "00"}}])
    assert "<script>" not in page
    *_, sources = tables(page)
    assert len(sources) == 1
    assert len(sources[0]) == 3
