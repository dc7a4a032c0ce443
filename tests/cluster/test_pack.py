"""Finished work moves to another machine whole, and nothing else gets in by its archive."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shielded_recrl.cluster import archive, pack, unpack
from shielded_recrl.cluster.archive import Input, opened, write
from shielded_recrl.cluster.records import (
    INCOMPLETE,
    LOCKS,
    METADATA,
    mark_unfinished,
    noted,
    write_record,
)
from shielded_recrl.errors import UserError

# A time in whole nanoseconds that no float holds.
LONG_AGO = 1_600_000_000_123_456_789
MODEL = "results/ranker/books/model.safetensors"
ADAPTER = "results/rl/books/shielded/seed-1/adapter"
TABLE = "results/aggregate_results.csv"
RAW = "resources/raw/ml-25m/ml-25m.zip"
HUB = "resources/models/a--b"


def put(path, content=b"x", mtime_ns=LONG_AGO):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def finish(folder, output, files, inputs=(), log=()):
    """What a job leaves: an output, a file or a folder of them, and Snakemake's record."""
    for number, (name, content) in enumerate(files.items()):
        put(folder / output / name, content, LONG_AGO + number)
    write_record(
        folder, output, {"rule": "toy", "input": [*inputs], "log": [*log], "params": ["1"]}
    )


def state(folder):
    """Bytes and times of all files."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def records(folder):
    return {
        output: json.loads(note.read_text()) for output, note in noted(folder / METADATA).items()
    }


def refused(command, *args, **flags):
    """The one line in which a command refuses."""
    with pytest.raises(UserError) as raised:
        command(*args, **flags)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def old(tmp_path):
    """A folder in which a study was finished."""
    folder = tmp_path / "old"
    log = "results/logs/ranker/books/train.log"
    put(folder / log, b"trained")
    put(folder / "results/benchmarks/ranker/books/train.tsv", b"1s")
    put(folder / RAW, b"ratings")
    put(folder / HUB / "model.safetensors", b"weights")
    put(folder / HUB / ".snakemake_timestamp", b"")
    put(folder / HUB / ".cache/huggingface/download.metadata", b"today")
    finish(folder, MODEL, {"": b"ranker"}, inputs=[RAW, "results/data/books/x"], log=[log])
    own = tmp_path / "raw/steam-200k.csv"
    put(own)
    finish(folder, "results/ranker/steam/model.safetensors", {"": b"other"}, inputs=[str(own)])
    adapter = {"adapter_model.safetensors": b"A", ".snakemake_timestamp": b"", "deep/er": b"B"}
    finish(folder, ADAPTER, adapter, inputs=[MODEL, HUB])
    finish(folder, TABLE, {"": b"a,b"}, inputs=[f"{ADAPTER}/summary.json"])
    finish(folder, "results/shield/books/gone", {"": b"deleted since"})
    (folder / "results/shield/books/gone").unlink()
    put(folder / "results/live/books/events", b"of no record")
    return folder


@pytest.fixture
def new(tmp_path):
    """A fresh clone elsewhere: its inputs are the same, and new."""
    folder = tmp_path / "new"
    (folder / "resources").mkdir(parents=True)
    return folder


@pytest.fixture
def packs(old, tmp_path):
    pack.main(folder=old, out=tmp_path / "packs")
    return tmp_path / "packs"


@pytest.fixture
def books(packs):
    return packs / "books.tar"


class TestPack:
    def test_an_archive_for_each_dataset_and_one_for_the_study(self, old, packs):
        held = {}
        for path in packs.iterdir():
            with opened(path) as one:
                held[path.name] = {file.path for file in one.manifest.files}
        assert held == {
            "books.tar": {
                MODEL,
                *(f"{ADAPTER}/{name}" for name in ("adapter_model.safetensors", "deep/er")),
                f"{ADAPTER}/.snakemake_timestamp",
                "results/logs/ranker/books/train.log",
                "results/benchmarks/ranker/books/train.tsv",
            },
            "steam.tar": {"results/ranker/steam/model.safetensors"},
            "study.tar": {TABLE},
        }

    def test_without_runs_what_they_are_made_from(self, old, tmp_path, capsys):
        pack.main(folder=old, out=tmp_path / "packs", runs=False)
        assert {path.name for path in (tmp_path / "packs").iterdir()} == {"books.tar", "steam.tar"}
        with opened(tmp_path / "packs/books.tar") as one:
            assert list(one.manifest.outputs) == [MODEL]
        assert "books.tar: 1 outputs, 3 files" in capsys.readouterr().out

    def test_a_tar_that_any_tool_reads_with_sums_to_check(self, old, books):
        with tarfile.open(books) as plain:
            first, *others = plain.getmembers()
            text = plain.extractfile(first).read()
            assert first.name == f"manifest-{hashlib.sha256(text).hexdigest()}.json"
            for member, listed in zip(others, json.loads(text)["files"], strict=True):
                content = plain.extractfile(member).read()
                assert content == (old / member.name).read_bytes()
                assert hashlib.sha256(content).hexdigest() == listed["sha256"]

    def test_the_same_work_gives_the_same_bytes(self, old, books):
        before = books.read_bytes()
        pack.main(folder=old, out=books.parent, dataset=("books",))
        assert books.read_bytes() == before

    def test_of_a_running_study(self, old, tmp_path):
        put(old / LOCKS / "0.input.lock")
        assert "snakemake --unlock" in refused(pack.main, folder=old, out=tmp_path / "packs")
        assert not (tmp_path / "packs").exists()

    def test_of_a_job_that_was_cut_and_only_where_it_matters(self, old, tmp_path):
        mark_unfinished(old, ADAPTER)
        mark_unfinished(old, "results/rl/books/shielded/seed-2/adapter")
        out = tmp_path / "packs"
        line = refused(pack.main, folder=old, out=out)
        assert line.startswith(str(old / ADAPTER))
        assert "--rerun-incomplete" in line
        assert not out.exists()
        pack.main(folder=old, out=out, dataset=("steam", "study"))
        pack.main(folder=old, out=out, runs=False)
        assert {path.name for path in out.iterdir()} == {"books.tar", "steam.tar", "study.tar"}

    def test_of_nothing(self, old, new, tmp_path):
        assert "nothing finished" in refused(pack.main, folder=new, out=tmp_path)
        line = refused(pack.main, folder=old, out=tmp_path, dataset=("books", "ml25m"))
        assert line.startswith("--dataset ml25m")
        assert line.endswith("books, steam, study")
        assert not list(tmp_path.glob("*.tar"))

    @pytest.mark.parametrize("text", ["{", "[]", '{"input": [], "log": "x"}', '{"log": []}'])
    def test_of_a_damaged_record(self, old, tmp_path, text):
        note = noted(old / METADATA)[MODEL]
        note.write_text(text)
        assert refused(pack.main, folder=old, out=tmp_path / "packs").startswith(str(note))

    def test_of_more_files_than_an_archive_can_list(self, old, tmp_path, monkeypatch):
        monkeypatch.setattr(archive, "MAX_MANIFEST", 100)
        assert "too many" in refused(pack.main, folder=old, out=tmp_path / "packs")

    @pytest.mark.parametrize("place", [MODEL, f"{ADAPTER}/linked"])
    def test_of_a_link(self, old, tmp_path, place):
        (old / place).unlink(missing_ok=True)
        (old / place).symlink_to(old / TABLE)
        assert f"{place}: a link" in refused(pack.main, folder=old, out=tmp_path / "packs")

    @pytest.mark.parametrize("content", [b"RANKER", b"short"])
    def test_of_a_file_that_changes_meanwhile(self, old, tmp_path, content):
        manifest = pack.manifest_of(old, "books", pack.outputs(old, METADATA))
        (old / MODEL).write_bytes(content)
        assert "changed while" in refused(write, tmp_path / "a.tar", manifest, old)
        assert not list(tmp_path.glob("*.tar*"))


class TestUnpack:
    def test_bytes_times_and_records_are_those_of_the_old_folder(self, old, new, packs, capsys):
        unpack.main(tuple(sorted(packs.iterdir())), folder=new)
        expected = state(old / "results")
        del expected["live/books/events"]
        assert state(new / "results") == expected
        kept = records(old)
        del kept["results/shield/books/gone"]
        assert records(new) == kept
        assert noted(new / INCOMPLETE) == {}
        assert "books.tar: 2 outputs, 6 files; 0 were there already" in capsys.readouterr().out

    def test_a_manifest_longer_than_what_is_read_at_once(self, old, new, tmp_path, monkeypatch):
        packs = tmp_path / "packs"
        finish(old, "results/ranker/books/many", {str(number): b"" for number in range(200)})
        monkeypatch.setattr(archive, "PIECE", 8192)
        pack.main(dataset=("books",), folder=old, out=packs)
        unpack.main((packs / "books.tar",), folder=new)
        assert (new / MODEL).read_bytes() == (old / MODEL).read_bytes()

    def test_a_second_time_restores_times_alone(self, new, books, capsys):
        unpack.main((books,), folder=new)
        before, inode = state(new / "results"), (new / MODEL).stat().st_ino
        os.utime(new / MODEL)
        unpack.main((books,), folder=new)
        assert state(new / "results") == before
        assert (new / MODEL).stat().st_ino == inode
        assert "6 were there already" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "there", [MODEL, f"{ADAPTER}/adapter_model.safetensors", f"{ADAPTER}/more"]
    )
    def test_what_differs_is_replaced_on_demand_alone(self, old, new, books, there):
        put(new / there, b"ours")
        before = state(new)
        line = refused(unpack.main, (books,), folder=new)
        assert "--overwrite" in line
        assert state(new) == before
        unpack.main((books,), folder=new, overwrite=True)
        assert state(new / ADAPTER) == state(old / ADAPTER)
        assert state(new / "results/ranker") == {
            name: found for name, found in state(old / "results/ranker").items() if "books" in name
        }

    def test_a_link_in_the_way_is_not_followed(self, old, new, books, tmp_path):
        put(tmp_path / "mine/file", b"mine")
        for place in (MODEL, ADAPTER):
            (new / place).parent.mkdir(parents=True)
            (new / place).symlink_to(tmp_path / "mine")
        assert "as 1 more" in refused(unpack.main, (books,), folder=new)
        unpack.main((books,), folder=new, overwrite=True)
        assert state(tmp_path / "mine") == {"file": (b"mine", LONG_AGO)}
        assert state(new / ADAPTER) == state(old / ADAPTER)

    def test_results_on_another_disk(self, old, new, books, tmp_path):
        (tmp_path / "volume").mkdir()
        (new / "results").symlink_to(tmp_path / "volume")
        unpack.main((books,), folder=new)
        assert (tmp_path / "volume/ranker/books/model.safetensors").read_bytes() == b"ranker"

    def test_while_a_study_runs_there(self, new, books):
        put(new / LOCKS / "0.output.lock")
        assert "Snakemake runs here" in refused(unpack.main, (books,), folder=new)
        assert not (new / "results").exists()

    def test_a_disk_that_is_too_small(self, new, books, monkeypatch):
        usage = unpack.shutil.disk_usage(new)
        monkeypatch.setattr(unpack.shutil, "disk_usage", lambda _: usage._replace(free=5))
        assert "are free" in refused(unpack.main, (books,), folder=new)
        assert not (new / "results").exists()

    def test_a_crash_leaves_nothing_that_counts_as_finished(self, old, new, books, monkeypatch):
        with monkeypatch.context() as crash:
            crash.setattr(unpack, "write_record", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                unpack.main((books,), folder=new)
        there = [output for output in (MODEL, ADAPTER) if (new / output).exists()]
        assert there
        assert list(noted(new / INCOMPLETE)) == there
        unpack.main((books,), folder=new)
        assert noted(new / INCOMPLETE) == {}
        assert state(new / ADAPTER) == state(old / ADAPTER)

    def test_a_clock_that_is_behind(self, old, new, tmp_path, capsys):
        put(old / TABLE, b"a,b", time.time_ns() + 10**12)
        pack.main(folder=old, out=tmp_path / "packs", dataset=("study",))
        unpack.main((tmp_path / "packs/study.tar",), folder=new)
        assert re.search("made (999|1000) s from now", capsys.readouterr().out)

    def test_as_commands(self, old, new, books, tmp_path):
        def run(*args):
            command = [sys.executable, "-m", "shielded_recrl.cluster", *args]
            return subprocess.run(command, cwd=new, capture_output=True, text=True, check=False)

        assert run("pack", "--folder", str(old)).returncode == 0
        done = run("unpack", *sorted(str(path) for path in (new / "packs").iterdir()))
        assert done.returncode == 0
        assert f"warning: {tmp_path}/raw/steam-200k.csv: read from outside" in done.stdout
        failed = run("unpack")
        assert failed.returncode == 1
        assert failed.stderr.count("\n") == 1


class TestInputs:
    def test_the_same_get_their_times_back(self, new, books, capsys):
        put(new / RAW, b"ratings", LONG_AGO * 11 // 10)
        put(new / HUB / "model.safetensors", b"weights")
        put(new / HUB / ".snakemake_timestamp", b"", LONG_AGO * 11 // 10)
        put(new / HUB / ".cache/huggingface/download.metadata", b"later")
        unpack.main((books,), folder=new)
        assert (new / RAW).stat().st_mtime_ns == LONG_AGO
        assert (new / HUB / ".snakemake_timestamp").stat().st_mtime_ns == LONG_AGO
        assert "warning" not in capsys.readouterr().out

    def test_others_count_as_new_however_old_they_are(self, new, books, capsys):
        put(new / RAW, b"others", LONG_AGO - 10**9)
        put(new / HUB / "model.safetensors", b"others")
        put(new / HUB / ".snakemake_timestamp", b"")
        unpack.main((books,), folder=new)
        for path in (new / RAW, new / HUB / ".snakemake_timestamp"):
            assert path.stat().st_mtime_ns > LONG_AGO
        assert capsys.readouterr().out.count("runs again") == 2

    def test_the_earliest_time_serves_archives_of_two_machines(self, old, new, books):
        put(new / RAW, b"ratings")
        unpack.main((books,), folder=new)
        os.utime(old / RAW, ns=(LONG_AGO + 10**9, LONG_AGO + 10**9))
        pack.main(folder=old, out=books.parent)
        unpack.main((books,), folder=new)
        assert (new / RAW).stat().st_mtime_ns == LONG_AGO

    def test_missing_ones_are_named(self, new, books, capsys):
        unpack.main((books,), folder=new)
        said = capsys.readouterr().out
        assert f"{RAW}: not here" in said
        assert f"{HUB}: not here" in said

    def test_none_outside_of_the_folder_is_touched(self, new, tmp_path):
        put(tmp_path / "mine", b"mine")
        put(new / ".git/index", b"mine")
        paths = (str(tmp_path / "mine"), "../mine", ".git/index")
        listed = tuple(Input(path=path, mtime_ns=1, sha256="0" * 64) for path in paths)
        assert all("not looked at" in line for line in unpack.settle(new, listed))
        for path in (tmp_path / "mine", new / ".git/index"):
            assert path.stat().st_mtime_ns == LONG_AGO


def member(name, content=b"", size=None, **fields):
    """A header and its bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content) if size is None else size
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def listed(path, content=b"x", **changes):
    entry = {"path": path, "size": len(content), "mtime_ns": LONG_AGO}
    return entry | {"sha256": hashlib.sha256(content).hexdigest()} | changes


def manifest_member(files, **changes):
    document = {"format": 1, "part": "books", "files": files, "outputs": {}, "inputs": []} | changes
    text = json.dumps(document).encode()
    return member(f"manifest-{hashlib.sha256(text).hexdigest()}.json", text)


A, B = "results/a", "results/b"
END = bytes(1024)
GOOD = manifest_member([listed(A)]) + member(A, b"x")
# A second header follows each of these, without end.
CHAIN = member("x", b"11 path=xy\n", type=tarfile.XHDTYPE) * 3000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *(
            pytest.param(
                manifest_member([listed(path)]) + member(path, b"x"), "is no path", id=path
            )
            for path in (
                *("/etc/passwd", "../a", "results/../a", "results/", "results", "a", "results//a"),
                *(
                    "resources/a",
                    ".snakemake/metadata/a",
                    "results/a\\b",
                    "resultsx/a",
                ),
            )
        ),
        (manifest_member([listed(B), listed(A)]), "order"),
        (manifest_member([listed(A), listed(A)]), "order"),
        (manifest_member([listed(A), listed(f"{A}/b")]), "a file and a folder"),
        (manifest_member([listed(A)], outputs={B: {}}), "has no file"),
        (manifest_member([listed(A)], outputs={"/etc": {}}), "has no file"),
        (manifest_member([listed(A, mtime_ns=-1)]), "mtime_ns"),
        (manifest_member([listed(A, mtime_ns=1e300)]), "mtime_ns"),
        (manifest_member([listed(A, size=True)]), "size"),
        (manifest_member([listed(A, sha256="0")]), "sha256"),
        (manifest_member([], part="../a"), "part"),
        (manifest_member([], format=2), "format"),
        (manifest_member([], **{"\n\x1b[31m": 1}), "unknown key"),
        (manifest_member([listed("results/\x1b[31m")]), "cannot be printed"),
        (manifest_member([], inputs=[listed("a\rb")]), "cannot be printed"),
        (manifest_member([listed(A, size=10**12)]) + member(A, size=10**12), "more bytes"),
        (manifest_member([listed(A)]) + member(A, b"y"), "not the file"),
        (manifest_member([listed(A)]) + member(A, b"xy"), "not as large"),
        (manifest_member([listed(A)]) + member(B, b"x"), "not where"),
        (manifest_member([listed(A)]), "ends before"),
        (GOOD + member(B, b"x"), "more than"),
        (GOOD + member("../b", type=tarfile.SYMTYPE, linkname="/etc"), "more than"),
        *(
            (manifest_member([listed(A, b"")]) + member(A, type=kind, linkname="/etc"), "no plain")
            for kind in (
                *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
                *(tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE),
            )
        ),
        (member("manifest-" + "0" * 64 + ".json", b"{}"), "not the one"),
        (member("manifest-" + "0" * 64 + ".json", size=1 << 40), "begin with a manifest"),
        (member(A, b"x"), "begin with a manifest"),
        (member("x", type=tarfile.XHDTYPE, size=1 << 40), "a header of"),
        (member("x", type=tarfile.GNUTYPE_LONGNAME, size=-512), "a header of"),
        (CHAIN, "recursion"),
        (b"", "empty"),
        (b"PK\x03\x04" * 500, "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_hostile_archive(tmp_path, new, content, says):
    path = tmp_path / "books.tar"
    path.write_bytes(content + END * bool(content))
    line = refused(unpack.main, (path,), folder=new)
    assert line.startswith(f"{path}: damaged archive (")
    assert says in line
    assert list(new.rglob("*")) == [new / "resources"]
    assert {found.name for found in tmp_path.iterdir()} == {"books.tar", "new"}


def test_the_archive_that_hostile_ones_differ_from_is_fine(tmp_path, new):
    (tmp_path / "books.tar").write_bytes(GOOD + END)
    unpack.main((tmp_path / "books.tar",), folder=new)
    assert state(new) == {A: (b"x", LONG_AGO)}


def test_json_that_nests_without_end(tmp_path, new):
    text = b"[" * 100_000
    path = tmp_path / "books.tar"
    path.write_bytes(member(f"manifest-{hashlib.sha256(text).hexdigest()}.json", text) + END)
    assert "damaged archive" in refused(unpack.main, (path,), folder=new)


damage = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("byte"), st.floats(0, 1), st.integers(0, 255)),
    # Where headers are: their sums are set right again.
    st.tuples(st.just("header"), st.integers(0, 600_000), st.integers(0, 255)),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(damage, min_size=1, max_size=3))
def test_damage_is_refused_or_does_no_harm(books, tmp_path, faults):
    whole = books.read_bytes()
    with tarfile.open(books) as tar:
        starts = [info.offset for info in tar]
        true = {info.name: tar.extractfile(info).read() for info in list(tar)[1:]}
    content = bytearray(whole)
    for kind, place, value in faults:
        if kind == "header":
            start = starts[place % len(starts)]
            content[start + place // len(starts) % 512] = value
            if len(header := content[start : start + 512]) == 512:
                content[start + 148 : start + 156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]
        elif kind == "byte":
            content[int(place * (len(whole) - 1))] = value
    cut = min([place for kind, place, _ in faults if kind == "cut"], default=1)
    path = tmp_path / "damaged.tar"
    path.write_bytes(content[: int(cut * len(content))])
    try:
        with (
            opened(path) as one,
            archive.progress("", 0) as bar,
            tempfile.TemporaryDirectory() as out,
        ):
            one.verify()
            for number, file in enumerate(one.manifest.files):
                one.unpack(file, Path(out, str(number)), bar)
                assert Path(out, str(number)).read_bytes() == true[file.path]
    except UserError as error:
        said = str(error)
    else:
        said = f"{path}: damaged archive ("
    assert said.startswith(f"{path}: damaged archive (")
    assert "\n" not in said


names = st.text("ab-._", min_size=1, max_size=3).filter(lambda name: name.strip("."))
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map("/".join),
    st.tuples(st.binary(max_size=700), st.integers(0, 2**62)),
    min_size=1,
)


@settings(max_examples=60, deadline=None)
@given(tree=trees, data=st.data())
def test_whatever_is_packed_comes_back(tree, data):
    """Folders and files whose names sort otherwise than their paths, and any time."""
    files = {f"results/data/books/{name}": found for name, found in tree.items()}
    files = {
        path: found
        for path, found in files.items()
        if not any(other.startswith(f"{path}/") for other in files)
    }
    places = {path for name in files for path in [*archive.parents(name)[2:], name]}
    chosen = data.draw(st.sets(st.sampled_from(sorted(places)), min_size=1))
    # No output lies in another.
    tops = {one for one in chosen if not any(one.startswith(f"{other}/") for other in chosen)}
    with tempfile.TemporaryDirectory() as place:
        old, new = Path(place, "old"), Path(place, "new")
        new.mkdir()
        for path, (content, mtime_ns) in files.items():
            put(old / path, content, mtime_ns)
        for output in tops:
            finish(old, output, {})
        pack.main(folder=old, out=Path(place))
        unpack.main((Path(place, "books.tar"),), folder=new)
        tracked = {
            path: found
            for path, found in files.items()
            if path in tops or any(path.startswith(f"{top}/") for top in tops)
        }
        assert {path: found for path, found in state(new).items() if path in files} == tracked
        assert records(new) == records(old)
        with opened(Path(place, "books.tar")) as one:
            assert set(one.manifest.units) == tops


@pytest.fixture(scope="module")
def persistence(tmp_path_factory):
    from snakemake.persistence.file import FilePersistence

    return FilePersistence(path=tmp_path_factory.mktemp("notes") / ".snakemake", nolock=True)


class TestNotesOfSnakemake:
    """Against Snakemake's own code: how it names its notes is no interface."""

    @settings(max_examples=50, deadline=None)
    @given(output=st.text(min_size=1, max_size=400).filter(lambda text: text.isprintable()))
    def test_both_find_what_the_other_wrote(self, persistence, output):
        from snakemake.persistence import MetadataRecord

        folder = persistence.path.parent
        persistence._write_record(output, MetadataRecord(rule="theirs"))
        persistence._mark_incomplete(output, None)
        assert json.loads(noted(folder / METADATA)[output].read_text())["rule"] == "theirs"
        assert output in noted(folder / INCOMPLETE)
        write_record(folder, output, {"rule": "ours"})
        persistence._clear_cache()
        assert persistence._read_record(output).rule == "ours"
        assert persistence._filter_incomplete_keys([output]) == set()
        mark_unfinished(folder, output)
        persistence._clear_cache()
        assert persistence._filter_incomplete_keys([output]) == {output}
        persistence._unmark_incomplete(output)
        assert output not in noted(folder / INCOMPLETE)

    def test_files_of_others_are_no_notes(self, tmp_path):
        for name in ("migration_underway", ".nfs0001", "YQ", "@YQ==", "@a/@b/c"):
            put(tmp_path / name)
        assert noted(tmp_path) == {}


# Its name is too long for one note; the base comes from elsewhere; the raw file is too large for
# Snakemake to compare it by its checksum.
SNAKEFILE = """
LONG = "results/ranker/books/" + 200 * "x"

rule table:
    input: "results/shield/books/bases"
    output: "results/table.csv"
    shell: "cat {input}/* > {output}"

rule fetch:
    output: directory("resources/models/a--b")
    shell: "mkdir -p {output}/.cache && echo weights > {output}/model && date +%N > {output}/.cache/day"

rule train:
    input: "resources/raw/ratings"
    output: LONG
    log: "results/logs/ranker/books/train.log"
    benchmark: "results/benchmarks/ranker/books/train.tsv"
    shell: "wc -c {input} > {output} 2> {log}"

rule bases:
    input: LONG, "resources/models/a--b"
    output: directory("results/shield/books/bases")
    shell: "mkdir {output} && cat {input[0]} {input[1]}/model > {output}/all"
"""


def snakemake(folder, *args):
    """The rules that a run starts, or with -n would start."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *args],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return re.findall(r"^(?:local)?rule (\w+):", done.stdout + done.stderr, re.MULTILINE)


@pytest.mark.slow
def test_snakemake_takes_what_was_unpacked_for_its_own(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    put(old / "Snakefile", SNAKEFILE.encode())
    put(old / "resources/raw/ratings", bytes(2_000_000))
    assert sorted(snakemake(old)) == ["bases", "fetch", "table", "train"]
    pack.main(folder=old, out=tmp_path)
    archives = tmp_path / "books.tar", tmp_path / "study.tar"

    put(new / "Snakefile", SNAKEFILE.encode())
    later = (old / "results/table.csv").stat().st_mtime_ns + 10**12
    put(new / "resources/raw/ratings", bytes(2_000_000), later)
    unpack.main(archives, folder=new)
    assert snakemake(new, "resources/models/a--b") == ["fetch"]
    # What was fetched is newer than what was made from it, until it is compared.
    unpack.main(archives, folder=new)
    assert snakemake(new, "-n") == []

    put(new / "resources/raw/ratings", bytes(2_000_001), LONG_AGO)
    unpack.main(archives, folder=new)
    assert sorted(snakemake(new, "-n")) == ["bases", "table", "train"]
