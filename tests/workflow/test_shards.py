"""Stages in shards write the very bytes of one job each."""

import pytest

pytestmark = pytest.mark.slow

SHARDS = 2


def test_shards_of_the_shield_change_no_byte(tiny, twin):
    folder = "results/shield/steam"
    whole = {
        path.relative_to(tiny.folder).as_posix(): path.read_bytes()
        for path in sorted((tiny.folder / folder).rglob("*"))
        if path.is_file()
    }
    assert sorted(name.rsplit("/", 1)[1] for name in whole) == [
        "bases-0.9999.safetensors",
        "readout.json",
        "readout.safetensors",
    ]
    for name in whole:
        (twin.folder / name).unlink()
    changes = {"resources": {"shards": SHARDS}}
    twin.run(*whole, changes=changes)
    assert {name: (twin.folder / name).read_bytes() for name in whole} == whole
    # Each shard had its job, and what it left is gone when it has been joined.
    logs = sorted((twin.folder / "results/logs/shield/steam").rglob("shard-*.log"))
    assert len(logs) == 2 * SHARDS
    lines = [log.read_text().splitlines()[-1] for log in logs]
    assert sum(int(line.split(": ")[1].split(" of ")[0]) > 0 for line in lines) > SHARDS
    assert not list((twin.folder / folder).rglob("shard-*"))
    # Joined parts are not made anew.
    plan = twin.plan(*whole, changes=changes)
    assert not plan.jobs


def test_shards_of_texts_and_probes_change_no_byte(tiny, twin):
    """From the trained adapter to the row of the table."""
    folders = [f"results/{stage}/steam/shielded/seed-1" for stage in ("rl", "audit")]
    whole = {
        path.relative_to(tiny.folder).as_posix(): path.read_bytes()
        for folder in folders
        for path in (tiny.folder / folder).iterdir()
        if path.is_file()
    }
    made = ["evaluation.json", "certificate.json", "explanations.jsonl", "rankings.parquet"]
    made = [f"{folders[0]}/{name}" for name in (*made, "users.parquet")]
    made += [f"{folders[1]}/{name}" for name in ("probes.json", "audit.json")]
    assert set(made) <= set(whole)
    for name in made:
        (twin.folder / name).unlink()
    steam = [{"dataset": "steam", "variants": ["shielded"], "seeds": [1]}]
    # With what was made before by one job each, which is the same to the byte.
    changes = {"study": steam, "resources": {"shards": 2}}
    table = "results/aggregate_results.csv"
    twin.run(*made, table, "--rerun-triggers", "mtime", changes=changes)
    assert {name: (twin.folder / name).read_bytes() for name in whole} == whole
    header, *rows = tiny.read(table).splitlines()
    (row,) = [row for row in rows if row.startswith("steam,")]
    assert twin.read(table).splitlines() == [header, row]
    for folder, parts in zip(folders, ("texts", "answers"), strict=True):
        logs = sorted((twin.folder / folder.replace("results", "results/logs") / parts).iterdir())
        assert [log.name for log in logs] == ["shard-0-of-2.log", "shard-1-of-2.log"]
        assert not list((twin.folder / folder).rglob("shard-*"))
