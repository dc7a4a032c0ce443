"""Files of dialogues to tables: what is kept, what is not, and what never depends on what."""

import copy
import gzip
import json
import random
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import here
from shielded_recrl.dialogue import make, prepare
from shielded_recrl.dialogue.corpus.dialogues import RECOMMENDER, SCHEMAS, SEEKER, SLOT, Dialogues
from shielded_recrl.dialogue.settings import DialoguePrepareSettings, DialogueWorldSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl

TINY = DialogueWorldSettings(dialogues=60, films=40, comments=280)
NAMES = ("train_data.jsonl", "test_data.jsonl", "movies_with_mentions.csv")
TABLES = tuple(f"{name}.parquet" for name in SCHEMAS)
# A film that is in no list.
NOBODYS = "@999999"


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dialogue") / "raw"
    make.main(out=folder, seed=1, settings=TINY)
    return folder


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dialogue") / "data"
    prepare.main(raw=raw, out=folder, genres=raw / "movies.csv", synthetic=True)
    return folder


@pytest.fixture
def mine(raw, tmp_path) -> Path:
    """A copy to change."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes((raw / name).read_bytes())
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def contents(folder: Path, names=TABLES) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def conversations(folder: Path) -> dict[str, list[str]]:
    """Split -> ids of its dialogues."""
    table = pl.read_parquet(folder / "dialogues.parquet")
    return {
        split: table.filter(pl.col("split") == split)["conversation"].to_list()
        for split in ("train", "valid", "test")
    }


class TestTables:
    def test_all_of_them_and_what_they_count(self, raw, out):
        assert {path.name for path in out.iterdir()} == {*TABLES, "stats.json", "quarantine.jsonl"}
        stats = read_json(out / "stats.json")
        split = conversations(out)
        assert split["test"] == [row["conversationId"] for row in rows(raw / NAMES[1])]
        assert len(split["train"]) + len(split["valid"]) == len(rows(raw / NAMES[0]))
        assert stats["rows_read"][NAMES[0]] == 48
        assert stats["kept_out"] == {}
        assert stats["synthetic"] is True
        for name, count in (
            ("mentions", "mentions"),
            ("turns", "turns"),
            ("dialogues", "dialogues"),
        ):
            table = pl.read_parquet(out / f"{name}.parquet")
            assert table.schema == SCHEMAS[name]
            assert sum(part[count] for part in stats["splits"].values()) == len(table)
        repeats = pl.read_parquet(out / "mentions.parquet")["is_repeat"].sum()
        assert sum(part["repeats"] for part in stats["splits"].values()) == repeats > 0

    def test_what_was_said_is_there(self, raw, out):
        """The same words, films and answers, found on another way."""
        names = [line.split(",")[0] for line in (raw / NAMES[2]).read_text().splitlines()[1:]]
        found = Dialogues.load(out)
        item = {
            movie: number
            for number, movies in found.items.select("item", "movies").iter_rows()
            for movie in movies
        }
        assert sorted(item) == sorted(names)
        by_id = {row["conversationId"]: row for file in NAMES[:2] for row in rows(raw / file)}
        order = pl.read_parquet(out / "dialogues.parquet")["conversation"]
        for dialogue, conversation in zip(found.all, order, strict=True):
            row = by_id[conversation]
            words = " ".join(turn.text for turn in dialogue.turns).split()
            told = " ".join(message["text"] for message in row["messages"])
            films = [
                token.strip(".,?! ") for token in told.replace("@", " @").split() if "@" in token
            ]
            assert [i for turn in dialogue.turns for i in turn.items] == [
                item["".join(filter(str.isdecimal, film))] for film in films
            ]
            assert len(words) == len(told.split())
            assert [turn.role for turn in dialogue.turns] == [
                (SEEKER, RECOMMENDER)[(number + (dialogue.turns[0].role == RECOMMENDER)) % 2]
                for number in range(len(dialogue.turns))
            ]
            form = row["initiatorQuestions"] or row["respondentQuestions"]
            assert dialogue.liked == {item[movie]: each["liked"] for movie, each in form.items()}

    def test_repeats_are_what_was_named_before(self, out):
        named: dict[int, set[int]] = {}
        table = pl.read_parquet(out / "mentions.parquet").sort("dialogue", "turn", "position")
        for dialogue, _, _, item, repeat in table.iter_rows():
            assert repeat == (item in named.setdefault(dialogue, set()))
            named[dialogue].add(item)

    def test_mentions_of_films_are_those_of_train_alone(self, out):
        found = Dialogues.load(out)
        counts = Counter(
            i for one in found.split("train") for turn in one.turns for i in turn.items
        )
        assert found.items["mentions"].to_list() == [counts[i + 1] for i in range(found.n_items)]

    def test_most_films_have_categories(self, out):
        assert (
            0.75 < (pl.read_parquet(out / "items.parquet")["categories"].list.len() > 0).mean() < 1
        )

    def test_again_gives_equal_bytes(self, raw, out, tmp_path):
        prepare.main(raw=raw, out=tmp_path, genres=raw / "movies.csv", synthetic=True)
        names = [path.name for path in out.iterdir()]
        assert contents(out, names) == contents(tmp_path, names)


class TestTheSplit:
    def test_by_the_dialogue_alone(self, mine, tmp_path):
        """Who validates does not hang on who else is there."""
        prepare.main(raw=mine, out=tmp_path / "all")
        every = conversations(tmp_path / "all")
        write(mine / NAMES[0], rows(mine / NAMES[0])[::-2])
        prepare.main(raw=mine, out=tmp_path / "half")
        half = conversations(tmp_path / "half")
        assert 0 < len(half["valid"]) < len(every["valid"])
        assert set(half["valid"]) < set(every["valid"])
        assert set(half["train"]) < set(every["train"])

    def test_another_seed_draws_others(self, raw, tmp_path):
        drawn = []
        for seed in (1, 2):
            prepare.main(raw=raw, out=tmp_path / str(seed), seed=seed)
            drawn.append(conversations(tmp_path / str(seed)))
        assert drawn[0]["valid"] != drawn[1]["valid"]
        assert drawn[0]["test"] == drawn[1]["test"]

    @given(st.integers(0, 2**32), st.sampled_from([0.05, 0.2, 0.4]))
    @settings(max_examples=20, deadline=None)
    def test_of_the_share_asked_for(self, seed, share):
        drawn = [prepare.part(str(number), share, seed) == "valid" for number in range(2000)]
        # Five standard deviations.
        assert abs(np.mean(drawn) - share) < 5 * (share * (1 - share) / 2000) ** 0.5

    def test_what_is_in_a_test_file_is_nowhere_else(self, mine, tmp_path):
        tested = rows(mine / NAMES[1])[:2]
        # One as it is, and one under another id.
        leaked = [tested[0], tested[1] | {"conversationId": "1"}]
        trained = rows(mine / NAMES[0])
        write(mine / NAMES[0], [*leaked, *trained, trained[0]])
        prepare.main(raw=mine, out=tmp_path / "out")
        split = conversations(tmp_path / "out")
        assert set(split["train"]) | set(split["valid"]) == {
            row["conversationId"] for row in trained
        }
        assert len(split["test"]) == 12
        found = read_jsonl(tmp_path / "out" / "quarantine.jsonl")
        assert [(row["row"], row["reason"], row["detail"]) for row in found] == [
            (1, "there twice", f"also in {NAMES[1]}"),
            (2, "there twice", f"also in {NAMES[1]}"),
            (51, "there twice", f"also in {NAMES[0]}"),
        ]


class TestWhereFilesLie:
    def test_zip_folder_and_absolute_paths_are_one(self, raw, tmp_path):
        prepare.main(raw=raw, out=tmp_path / "folder")
        with zipfile.ZipFile(tmp_path / "redial_dataset.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in NAMES:
                archive.write(raw / name, name)
        prepare.main(raw=tmp_path / "redial_dataset.zip", out=tmp_path / "zip")
        train, test, movies = (str(raw.resolve() / name) for name in NAMES)
        prepare.main(
            raw=tmp_path, out=tmp_path / "paths", train=(train,), test=(test,), movies=movies
        )
        names = (*TABLES, "stats.json", "quarantine.jsonl")
        folder, unpacked, paths = (
            contents(tmp_path / each, names) for each in ("folder", "zip", "paths")
        )
        assert folder == unpacked == paths
        assert {path.name for path in (tmp_path / "zip").iterdir()} == set(names)

    def test_gzip_and_several_files(self, mine, tmp_path):
        prepare.main(raw=mine, out=tmp_path / "one")
        lines = (mine / NAMES[0]).read_bytes().splitlines(keepends=True)
        (mine / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:20])))
        (mine / "b.jsonl").write_bytes(b"".join(lines[20:]))
        prepare.main(raw=mine, out=tmp_path / "two", train=("a.jsonl.gz", "b.jsonl"))
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ("--train", "absent.jsonl"),
                "absent.jsonl: no such file; name the files in dialogue.",
            ),
            (("--train", NAMES[1]), f"{NAMES[1]}: named twice; expected other files"),
            (("--genres", "absent.csv"), "absent.csv: no such file"),
            (("--movies", "movies.csv"), "without movieName"),
            (("--valid-share", "0.9"), "valid_share"),
            (("--raw", NAMES[0]), "damaged zip file"),
        ],
    )
    def test_one_line(self, raw, tmp_path, monkeypatch, words, message):
        monkeypatch.chdir(raw)
        end = here("dialogue", "prepare", "--raw", raw, "--out", tmp_path / "out", *words)
        assert end.returncode == 1
        assert message in end.stderr
        assert end.stderr.count("\n") == 1
        assert not any(tmp_path.glob("out/*.parquet"))

    def test_what_follows_is_said(self, raw, tmp_path):
        end = here("dialogue", "prepare", "--raw", raw, "--out", tmp_path / "out")
        assert end.returncode == 0, end.stderr
        assert end.stdout.count("\n") == 1
        assert "60 dialogues (train " in end.stdout
        assert end.stdout.endswith("next: python -m shielded_recrl.dialogue annotate\n")

    def test_nothing_left_for_a_split(self, mine, tmp_path):
        write(mine / NAMES[0], rows(mine / NAMES[0])[:1])
        with pytest.raises(UserError, match=r"no dialogue for (valid|train) "):
            prepare.main(raw=mine, out=tmp_path / "out")

    def test_an_empty_file(self, mine, tmp_path):
        (mine / NAMES[1]).write_text("\n")
        with pytest.raises(UserError, match=r"test_data\.jsonl: no rows; expected one dialogue"):
            prepare.main(raw=mine, out=tmp_path / "out")


class TestDamage:
    def test_counted_by_reason_and_kept_out(self, mine, tmp_path):
        trained = rows(mine / NAMES[0])
        trained[3]["messages"] = []
        trained[5]["messages"][0]["text"] = f"Have you seen {NOBODYS}"
        trained[6]["messages"][0]["text"] = f"Or {NOBODYS}"
        write(mine / NAMES[0], trained)
        loose = DialoguePrepareSettings(max_bad_share=0.1)
        prepare.main(raw=mine, out=tmp_path, settings=loose)
        assert read_json(tmp_path / "stats.json")["kept_out"] == {
            NAMES[0]: {"no messages": 1, "unknown film": 2}
        }
        assert read_jsonl(tmp_path / "quarantine.jsonl")[1] == {
            "conversation": trained[5]["conversationId"],
            "detail": NOBODYS,
            "file": NAMES[0],
            "reason": "unknown film",
            "row": 6,
        }

    def test_too_much_of_it(self, mine, tmp_path):
        trained = rows(mine / NAMES[0])
        for row in trained[2:8]:
            row["messages"] = []
        write(mine / NAMES[0], trained)
        with pytest.raises(UserError) as end:
            prepare.main(raw=mine, out=tmp_path / "out")
        assert str(end.value) == (
            "train_data.jsonl: 6 of 48 rows are damaged (no messages: 6), first row 3: no messages "
            "(); expected one dialogue of ReDial a line; mend the file or raise "
            "dialogue.data.max_bad_share (0.1)"
        )
        assert not (tmp_path / "out").exists()

    def test_sound_rows_that_are_there_twice_are_no_damage(self, mine, tmp_path):
        write(mine / NAMES[0], rows(mine / NAMES[0]) * 2)
        prepare.main(raw=mine, out=tmp_path)
        assert read_json(tmp_path / "stats.json")["kept_out"] == {NAMES[0]: {"there twice": 48}}


# Damage of a dialogue that makes it unsound, whatever dialogue it is.
def without(key):
    def damage(row, chance):
        del row[key]

    return damage


def replaced(key, value):
    def damage(row, chance):
        row[key] = value

    return damage


def message(key, value):
    def damage(row, chance):
        chance.choice(row["messages"])[key] = value

    return damage


def silent(row, chance):
    """Nobody says anything in one turn."""
    speaker = chance.choice(row["messages"])["senderWorkerId"]
    for each in row["messages"]:
        if each["senderWorkerId"] == speaker:
            each["text"] = chance.choice(["", " ", "\t\r\n", "&nbsp;", "\u2028"])


def nobodys_film(row, chance):
    each = chance.choice(row["messages"])
    each["text"] += f" and {NOBODYS}"
    row["movieMentions"] = chance.choice([row["movieMentions"], {NOBODYS[1:]: None}, []])


def foreign(row, chance):
    told = chance.choice(
        [
            "Busco una pelicula para ver con mi familia",
            "Mujhe ek achhi movie chahiye, bhai, something nice for tonight",
            "Я ищу хороший фильм",
            "我想看电影",
        ]
    )
    for each in row["messages"]:
        each["text"] = told


def alone(row, chance):
    for each in row["messages"]:
        each["senderWorkerId"] = row["initiatorWorkerId"]


KEYS = (
    "conversationId",
    "initiatorWorkerId",
    "respondentWorkerId",
    "movieMentions",
    "initiatorQuestions",
    "respondentQuestions",
    "messages",
)
DAMAGES = {
    **{f"without {key}": without(key) for key in KEYS},
    **{f"{key} is null": replaced(key, None) for key in KEYS},
    **{f"{key} is a float": replaced(key, 1.5) for key in KEYS},
    "text is a number": message("text", 7),
    "text is half a character": message("text", "\ud800"),
    "somebody else": message("senderWorkerId", 5000),
    "no worker": message("senderWorkerId", {}),
    "a message is a text": replaced("messages", ["Hi", "Hello"]),
    "form is of texts": replaced("respondentQuestions", {"75000": "liked"}),
    "silent": silent,
    "nobody's film": nobodys_film,
    "foreign": foreign,
    "alone": alone,
}


@st.composite
def damaged_lines(draw) -> tuple[str, int]:
    """A kind of damage, and a seed of what else there is to draw."""
    return draw(st.sampled_from([*DAMAGES, "cut", "not UTF-8", "huge", "deep"])), draw(
        st.integers(0, 2**32)
    )


def damaged(line: bytes, kind: str, seed: int) -> bytes:
    chance = random.Random(seed)
    if kind == "cut":
        return line[: chance.randrange(1, len(line) - 1)]
    if kind == "not UTF-8":
        place = chance.randrange(len(line))
        return line[:place] + chance.choice([b"\xff", b"\xc3(", b"\xed\xa0\x80"]) + line[place:]
    if kind == "huge":
        return line[:-1] + b', "more": "' + b"x" * (1 << 20) + b'"}'
    if kind == "deep":
        return line[:-1] + b', "more": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    row = copy.deepcopy(json.loads(line))
    DAMAGES[kind](row, chance)
    return json.dumps(row).encode()


@given(st.lists(damaged_lines(), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_damaged_dialogues_never_matter_to_sound_ones(raw, tmp_path_factory, kinds, chance):
    """Whatever lies between sound dialogues, their tables are as if it were not there."""
    folder = tmp_path_factory.mktemp("damage")
    for name in NAMES[1:]:
        (folder / name).write_bytes((raw / name).read_bytes())
    sound = (raw / NAMES[0]).read_bytes().splitlines()
    victims = chance.sample(range(len(sound)), len(kinds))
    rest = [line for place, line in enumerate(sound) if place not in victims]
    (folder / "rest.jsonl").write_bytes(b"\n".join(rest))
    bad = {place: damaged(sound[place], *kind) for place, kind in zip(victims, kinds, strict=True)}
    lines = [bad.get(place, line) for place, line in enumerate(sound)]
    (folder / "mixed.jsonl").write_bytes(b"\n".join(lines))
    anything = DialoguePrepareSettings(max_bad_share=1.0)
    for name in ("rest", "mixed"):
        prepare.main(raw=folder, out=folder / name, train=(f"{name}.jsonl",), settings=anything)
    assert contents(folder / "mixed") == contents(folder / "rest")
    found = read_jsonl(folder / "mixed" / "quarantine.jsonl")
    assert [row["row"] for row in found] == [place + 1 for place in sorted(victims)]
    assert all(row["reason"] and len(row["detail"]) <= 200 for row in found)
    assert (folder / "rest" / "quarantine.jsonl").read_bytes() == b""


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_accepted_is_a_dialogue(raw, data):
    """Anything may stand anywhere: a line is refused for a reason, or all of it holds together."""
    row = json.loads((raw / NAMES[0]).read_bytes().splitlines()[data.draw(st.integers(0, 40))])
    films = frozenset(row["movieMentions"])
    for _ in range(data.draw(st.integers(1, 3))):
        place = row
        # Down to where a value is replaced, which may be the dialogue's own or deep within.
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            inner = place[key]
            if not isinstance(inner, dict | list) or data.draw(st.booleans()):
                place[key] = data.draw(ANY)
                break
            place = inner
    try:
        found = prepare.parse(json.dumps(row).encode(), films, DialoguePrepareSettings())
    except prepare.Damaged:
        return
    assert found.id.strip()
    assert {turn.role for turn in found.turns} == {SEEKER, RECOMMENDER}
    known = films | set(found.names)
    for before, turn in zip((None, *found.turns), found.turns, strict=False):
        assert turn.text == " ".join(turn.text.split()) != ""
        assert turn.text.count(SLOT) == len(turn.movies)
        assert set(turn.movies) <= known
        assert before is None or before.role != turn.role
    for movie, answer in found.answers.items():
        assert movie in known
        assert answer.suggested in (0, 1)
        assert {answer.seen, answer.liked} <= {0, 1, 2}


def test_real_files(shared_data, tmp_path):
    """Over 98% of the published English dialogues are English; the published subsets overlap."""
    trained = ("test_data.jsonl.gz", "kepler_train_subset.jsonl.gz", "kepler_valid_subset.jsonl.gz")
    prepare.main(
        raw=shared_data / "redial",
        out=tmp_path,
        train=trained,
        test=("valid_data_linked.jsonl.gz",),
        genres=shared_data / "ml25m" / "movies.csv",
    )
    stats = read_json(tmp_path / "stats.json")
    assert stats["kept_out"] == {
        "kepler_train_subset.jsonl.gz": {"there twice": 43},
        "kepler_valid_subset.jsonl.gz": {"there twice": 7},
        "valid_data_linked.jsonl.gz": {"empty turn": 1},
    }
    read = sum(stats["rows_read"][name] for name in (*trained, "valid_data_linked.jsonl.gz"))
    foreign = sum(counts.get("not English", 0) for counts in stats["kept_out"].values())
    assert foreign < 0.02 * read
    assert (stats["items"], stats["movies"]) == (6915, 6924)
    found = Dialogues.load(tmp_path)
    assert len(found.all) == 2891
    assert all(turn.text.count(SLOT) == len(turn.items) for one in found.all for turn in one.turns)
    assert found.title(1) == "Headhunter (2009)"
