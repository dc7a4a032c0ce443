"""Files the user already has are read where they lie, and never changed or copied."""

import gzip
import zipfile

import pytest


def snapshot(folder):
    """Name, bytes and times of everything below a folder."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("books", ("reviews_Books_5.json.gz", "meta_Books.json.gz")),
        ("ml25m", ("ratings.csv", "movies.csv")),
        ("steam", ("steam-200k.csv", "steam_games.json.gz")),
    ],
)
def test_prepare_leaves_the_raw_files_alone(tmp_path, command, dataset, names, packed):
    mine, out = tmp_path / "mine", tmp_path / "out"
    assert command("world", "--dataset", dataset, "--out", mine, "--users", 60).code == 0
    words = ["--interactions", mine / names[0], "--metadata", mine / names[1]]
    if packed and dataset == "ml25m":
        with zipfile.ZipFile(mine / "ml-25m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(mine / name, f"ml-25m/{name}")
                (mine / name).unlink()
        words = ["--interactions", mine / "ml-25m.zip"]
    elif packed:
        for place, name in enumerate(names):
            path = mine / name
            if path.suffix == ".gz":
                path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
                words[2 * place + 1] = path.with_suffix("")
            else:
                path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
                words[2 * place + 1] = path.with_suffix(".csv.gz")
    before = snapshot(mine)
    ended = command("prepare", "--dataset", dataset, *words, "--out", out)
    assert ended.code == 0
    assert snapshot(mine) == before
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "out"}
    assert not list(out.rglob("*.csv"))
