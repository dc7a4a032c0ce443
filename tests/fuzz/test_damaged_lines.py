"""100,000 damaged lines of raw files: each is read as a strict parser reads it, or put aside.

The parsers here share no code with the library: fields of a csv line come from a small automaton,
numbers from their grammar, and what JSON leaves open (a key given twice, half a character) from the
rules that docs/data.md tells. Every line is read among its like in large blocks and, in another file,
in blocks of a line or two: what stands beside a line must not decide what becomes of it.
"""

import ast
import codecs
import json
import math
import random
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.data import metadata, raw
from shielded_recrl.data.quarantine import Quarantine

BLANK = b" \t\n\r\x0b\x0c"
# What Python takes for space around a number.
SPACE = r"[ \t\n\r\x0b\x0c]*"
WHOLE = re.compile(rf"{SPACE}[+-]?[0-9]+{SPACE}")
REAL = re.compile(rf"{SPACE}[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?{SPACE}")
LONGEST_FIELD = 131_072
# Digits that Python turns into a number at most.
LONGEST_NUMBER = 4300
MOST_HOURS = 1_000_000
Row = tuple


class Bad(Exception):
    """A line that nobody may accept."""


# Values by their grammar.


def float32(value: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def real(text: str) -> float:
    if not REAL.fullmatch(text):
        raise Bad
    return float32(float(text))


def whole(text: str) -> int:
    if not WHOLE.fullmatch(text) or len(text.strip()) > LONGEST_NUMBER:
        raise Bad
    return int(Decimal(text.strip()))


def within(low: float, value: float, high: float) -> float:
    if not low <= value <= high:
        raise Bad
    return value


def stars(value: float) -> float:
    return within(math.ulp(0.0), value, 5.0)


def time(value: int) -> int:
    return within(1, value, 2**63 - 1)


def some(text: str) -> str:
    if not text:
        raise Bad
    return text


def number_id(text: str) -> int:
    return within(0, whole(text), 2**31 - 1)


def text_of(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise Bad from None


def split(line: bytes, width: int) -> list[str]:
    """The fields of a csv line: RFC 4180, with quotes inside of a bare field as they are."""
    text = text_of(line).removesuffix("\r")
    quoted_line = '"' in text
    found, field, state = [], "", "start"
    for char in text:
        if state == "quoted":
            if char == '"':
                state = "closing"
            else:
                field += char
        elif state == "closing":
            if char == '"':
                field, state = field + '"', "quoted"
            elif char == ",":
                found, field, state = [*found, field], "", "start"
            else:
                raise Bad
        elif char == '"' and state == "start":
            state = "quoted"
        elif char == ",":
            found, field, state = [*found, field], "", "start"
        else:
            # Among quoted fields a line end stands inside of quotes or nowhere.
            if char == "\r" and quoted_line:
                raise Bad
            field, state = field + char, "bare"
    if state == "quoted":
        raise Bad
    found.append(field)
    if len(found) != width or (quoted_line and max(map(len, found)) > LONGEST_FIELD):
        raise Bad
    return found


def ratings_row(line: bytes) -> Row:
    user, item, rating, when = split(line, 4)
    return number_id(user), number_id(item), stars(real(rating)), time(whole(when))


def ratings_2023_row(line: bytes) -> Row:
    user, item, rating, when = split(line, 4)
    return some(user), some(item), stars(real(rating)), time(whole(when))


def play_row(line: bytes) -> Row:
    user, item, behaviour, hours, _ = split(line, 5)
    if behaviour not in ("purchase", "play"):
        raise Bad
    played = within(0, real(some(hours)), MOST_HOURS)
    return some(user), some(item), played if behaviour == "play" else 0.0, 0


def object_of(line: bytes) -> dict:
    def first(pairs):
        found = {}
        for key, value in pairs:
            found.setdefault(key, value)
        return found

    def no_number(name):
        raise Bad

    try:
        value = json.loads(text_of(line), object_pairs_hook=first, parse_constant=no_number)
    except (ValueError, RecursionError):
        raise Bad from None
    if type(value) is not dict:
        raise Bad
    return value


def json_id(value) -> str:
    if type(value) is str:
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise Bad
        return some(value)
    if value is True or value is False:
        return str(value).lower()
    if type(value) is int:
        return str(value)
    raise Bad


def review_row(line: bytes) -> Row:
    about = object_of(line)
    user, item, rating, when = (about.get(key) for key in raw.REVIEW)
    if type(rating) is str:
        rating = real(rating)
    elif type(rating) in (int, float):
        rating = float32(float(rating)) if abs(rating) < 10**300 else math.inf
    else:
        raise Bad
    if type(when) is str:
        when = whole(when)
    elif type(when) is float:
        if not when.is_integer():
            raise Bad
        when = int(when)
    elif type(when) is not int:
        raise Bad
    return json_id(user), json_id(item), stars(rating), time(when)


def review_text(line: bytes) -> tuple[str | None, str | None]:
    about = object_of(line)
    found = [about.get(key) for key in raw.WRITTEN]
    return tuple(re.sub("[\ud800-\udfff]", "?", one) if type(one) is str else None for one in found)


# Lines as their owners publish them.


def review(rng: random.Random) -> bytes:
    about = {
        "reviewerID": f"A{rng.randrange(10**6)}",
        "asin": f"{rng.randrange(10**9):010d}",
        "reviewerName": rng.choice(['Ann "Bee" Doe', "Zoë", "", "A. \U0001f600"]),
        "helpful": [rng.randrange(9), rng.randrange(9)],
        "reviewText": rng.choice(["Good.", "A long\n tale, é 界", "", 'said "no"\t']),
        "overall": rng.choice([1.0, 2.0, 3.5, 5.0, 4]),
        "unixReviewTime": rng.randrange(1, 2 * 10**9),
    }
    return json.dumps(about, ensure_ascii=rng.random() < 0.5).encode()


def rating_2023(rng: random.Random) -> bytes:
    return f"AE{rng.randrange(10**6)},B{rng.randrange(10**6)},{rng.choice('12345')}.0,15{rng.randrange(10**11):011d}".encode()


def rating(rng: random.Random) -> bytes:
    return f"{rng.randrange(1, 99999)},{rng.randrange(1, 99999)},{rng.randrange(1, 11) / 2},{rng.randrange(1, 2 * 10**9)}".encode()


def play(rng: random.Random) -> bytes:
    title = rng.choice(["Dota 2", '"Sid, the ""Game"""', "Café III", "X-COM: Enemy"])
    kind = rng.choice(["purchase", "play"])
    hours = "1.0" if kind == "purchase" else rng.choice(["273.0", "0.1", "11754", "5."])
    return f"{rng.randrange(10**9)},{title} {rng.randrange(99)},{kind},{hours},0".replace(
        '""" ', " "
    ).encode()


# Damage.

ODD = (
    *("nan", "NaN", "inf", "-inf", "Infinity", "-Infinity", "1e39", "1e309", "-1", "-0", "0", "00"),
    *("1_0", "+3", " 3", "3 ", "3\t", "\x1c3", "0x10", "5.0000001", "5.0000000001", "1e-60", "1e2"),
    *("9223372036854775807", "9223372036854775808", "2147483647", "2147483648", "9" * 400),
    *(
        "9" * 5000,
        "null",
        "true",
        "None",
        "",
        '""',
        "[]",
        "{}",
        '"3"',
        "3.0",
        "3.5",
        ".5",
        "5.",
        ".",
    ),
    *("\u0663", "３", "1,5", "1;5", "--1", "1e", "e1", "01", "1.0e0", "18446744073709551616"),
)
BYTES = (
    *(b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\x0b", b"\x1c", b"\x85"),
    *("\u2028".encode(), "\u0085".encode(), b'"', b'""', b",", b"\\", b"\\u0000", b"\\ud800", b"'"),
    *(b"{", b"}", b"[", b"]", b":", b"//", b"#", b"\t", b" ", b"e", b"-", b"\xf0\x9f\x98\x80"),
)
ADDED = ('"x": NaN', '"overall": 0', '"unixReviewTime": "7"', "x", "", '"y": [1, {"a": null}]')
NUMBER = re.compile(rb"-?[0-9]+\.?[0-9]*")


def flip(line: bytes, rng: random.Random) -> bytes:
    data = bytearray(line)
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(line: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(line) + 1)
    return line[:at] if rng.random() < 0.7 else line[at:]


def insert(line: bytes, rng: random.Random) -> bytes:
    at = rng.choice((0, len(line), rng.randrange(len(line) + 1)))
    return line[:at] + rng.choice(BYTES) + line[at:]


def number(line: bytes, rng: random.Random) -> bytes:
    places = list(NUMBER.finditer(line))
    if not places:
        return line
    place = rng.choice(places)
    return line[: place.start()] + rng.choice(ODD).encode() + line[place.end() :]


def encode(line: bytes, rng: random.Random) -> bytes:
    text = line.decode()
    return rng.choice(
        (
            text.encode("latin-1", "replace"),
            text.encode("utf-16"),
            text.encode("utf-16-le"),
            text.encode("utf-32-be"),
            text.encode("utf-8-sig"),
            text.upper().encode(),
        )
    )


def pairs(line: bytes) -> list[str]:
    """`key: value` of an object's line, columns of any other."""
    try:
        return [json.dumps({key: value})[1:-1] for key, value in json.loads(line).items()]
    except (ValueError, AttributeError, RecursionError):
        return line.decode().split(",")


def joined(parts: list[str], line: bytes) -> bytes:
    text = ",".join(parts)
    return (f"{{{text}}}" if line.startswith(b"{") else text).encode()


def swap(line: bytes, rng: random.Random) -> bytes:
    """Columns in another order; values of an object under other keys."""
    parts = pairs(line)
    halves = [part.partition(": ") for part in parts]
    if line.startswith(b"{") and all(colon for _, colon, _ in halves):
        values = [value for *_, value in halves]
        rng.shuffle(values)
        parts = [f"{key}: {value}" for (key, *_), value in zip(halves, values, strict=True)]
    else:
        rng.shuffle(parts)
    return joined(parts, line)


def field(line: bytes, rng: random.Random) -> bytes:
    """A column or key left out, given twice, or added."""
    parts = pairs(line)
    place = rng.randrange(len(parts) or 1)
    match rng.randrange(3):
        case 0:
            del parts[place : place + 1]
        case 1:
            parts[place:place] = parts[-1:]
        case 2:
            parts.insert(place, rng.choice(ADDED))
    return joined(parts, line)


def nest(line: bytes, rng: random.Random) -> bytes:
    # About a thousand the parsers part; how far Python goes depends on who calls it.
    depth = rng.choice((3, 100, 400, 5000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}"), ("(", ")")))
    inner = opened * depth + "1" + closed * (depth if rng.random() < 0.7 else 0)
    place = rng.choice(list(NUMBER.finditer(line)) or [re.search(b"", line)])
    return line[: place.start()] + inner.encode() + line[place.end() :]


def lengthen(line: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(line) + 1)
    return (
        line[:at]
        + rng.choice((b"x", b"9", b" ", b'"', b"\\")) * rng.choice((200, 9000))
        + line[at:]
    )


def nothing(line: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b" ", b"\r", b",,,", b"{}", b"null", b"\0", b"\x0c", b"0", b'""'))


# With how often each happens; nesting and length cost the most time.
DAMAGES: dict[Callable[[bytes, random.Random], bytes], float] = {
    **{flip: 5, cut: 3, insert: 5, number: 5, encode: 1, swap: 2, field: 3},
    **{nest: 0.05, lengthen: 0.1, nothing: 0.5},
}


def damaged(
    make: Callable[[random.Random], bytes], count: int, seed: int, most: int = 2
) -> list[bytes]:
    """Lines, nine of ten damaged once or twice; none holds a line feed, so that they stay lines."""
    rng = random.Random(seed)
    kinds, weights = list(DAMAGES), list(DAMAGES.values())
    found = []
    for _ in range(count):
        line = make(rng)
        for damage in rng.choices(kinds, weights, k=min(most, rng.choice((0, *[1] * 7, 2, 2)))):
            try:
                line = damage(line or b" ", rng).replace(b"\n", b"")
            except UnicodeDecodeError:
                # Damaged before: no text any more.
                continue
        found.append(line)
    return found


# Files.


class Kind(NamedTuple):
    """A raw format: its name, header, how its lines are made and each is to be read, and how many."""

    dataset: str
    name: str
    header: bytes
    make: Callable[[random.Random], bytes]
    row: Callable[[bytes], Row]
    lines: int


HEADERS = (b"user_id,parent_asin,rating,timestamp\n", b"userId,movieId,rating,timestamp\n")
KINDS = {
    "books-2014": Kind("books", "reviews.json", b"", review, review_row, 12_000),
    "books-2023": Kind("books", "r.csv", HEADERS[0], rating_2023, ratings_2023_row, 26_000),
    "ml25m": Kind("ml25m", "ratings.csv", HEADERS[1], rating, ratings_row, 27_000),
    "steam": Kind("steam", "steam.csv", b"", play, play_row, 19_000),
}


class Found(NamedTuple):
    rows: list[Row]
    aside: list[tuple[int, str]]
    read: int
    texts: list[tuple] | None


def load(folder: Path, kind: Kind, lines: list[bytes]) -> Found:
    """What the library makes of a file of these lines."""
    path = folder / kind.name
    path.write_bytes(kind.header + b"".join(line + b"\n" for line in lines))
    aside = folder / "quarantine.jsonl"
    with Quarantine(aside) as quarantine:
        found = raw.LOADERS[kind.dataset](path, quarantine, folder)
    columns = found.columns
    rows = zip(
        found.users.source(columns["user"]).to_list(),
        found.items.source(columns["item"]).to_list(),
        columns["weight"].tolist(),
        columns["time"].tolist(),
        strict=True,
    )
    bad = [json.loads(line) for line in aside.read_text().splitlines()]
    texts = None
    if found.texts is not None:
        texts = [row for block in found.texts() for row in block.rows()]
    return Found(list(rows), [(row["line"], row["reason"]) for row in bad], found.read, texts)


def numbered(kind: Kind, lines: list[bytes]) -> dict[int, bytes]:
    """Lines by their number in the file, a byte order mark before the first left out."""
    found = dict(enumerate(lines, start=1 + kind.header.count(b"\n")))
    return found | {1: found[1].removeprefix(codecs.BOM_UTF8)} if 1 in found else found


def expected(kind: Kind, lines: list[bytes]) -> tuple[list[tuple[int, Row]], list[int]]:
    """Rows by their line numbers, and the numbers of the lines that are none."""
    rows, bad = [], []
    for number, line in numbered(kind, lines).items():
        if not line.strip(BLANK):
            continue
        try:
            rows.append((number, kind.row(line)))
        except Bad:
            bad.append(number)
    return rows, bad


def summed(rows: list[Row]) -> list[Row]:
    """Hours of each user and title, where they first stand."""
    hours: dict[tuple, list[float]] = {}
    for user, item, weight, _ in rows:
        hours.setdefault((user, item), []).append(weight)
    return [(*pair, math.fsum(parts), 0) for pair, parts in hours.items()]


def check(kind: Kind, lines: list[bytes], found: Found) -> None:
    rows, bad = expected(kind, lines)
    given = numbered(kind, lines)
    put_aside = [number for number, _ in found.aside]
    wrong = {number: given[number][:200] for number in sorted({*bad} ^ {*put_aside})[:5]}
    assert not wrong, wrong
    assert put_aside == bad
    assert all(reason and "\n" not in reason for _, reason in found.aside)
    assert found.read == len(rows) + len(bad)
    wanted = [row for _, row in rows]
    if kind.dataset == "steam":
        wanted = summed(wanted)
        assert [row[:2] for row in found.rows] == [row[:2] for row in wanted]
        assert [row[2] for row in found.rows] == pytest.approx([row[2] for row in wanted], rel=1e-5)
        assert all(math.isfinite(row[2]) for row in found.rows)
    else:
        assert found.rows == wanted
    if kind.name.endswith(".json"):
        texts = [(row, review_text(given[number])) for number, row in rows]
        told = [(*row[:2], row[3], *said) for row, said in texts if any(said)]
        assert found.texts == told


@pytest.mark.parametrize("name", KINDS)
def test_each_line_is_read_or_put_aside(tmp_path, monkeypatch, name):
    """In blocks of 8 MiB, in which all lines are looked at one by one, and of a line or two."""
    kind = KINDS[name]
    lines = damaged(kind.make, kind.lines, seed=len(name))
    half = len(lines) // 2
    check(kind, lines[:half], load(tmp_path, kind, lines[:half]))
    two = 2 * sum(map(len, lines)) // len(lines)
    monkeypatch.setattr(raw.blocks, "__defaults__", (max(150, two),))
    check(kind, lines[half:], load(tmp_path, kind, lines[half:]))


# Metadata: what is told of the wanted items.


def title(rng: random.Random) -> str:
    return rng.choice(["Emma &amp;amp; Co", "Half <b>Life</b>", "Matrix, The", "界 7", 'A "b"'])


def book(rng: random.Random) -> bytes:
    about = {
        rng.choice(["asin", "parent_asin"]): f"B{rng.randrange(10**9):09d}",
        "title": title(rng),
        "description": rng.choice(["It&#39;s good.", ["One.", "Two."], [], None]),
        "categories": rng.choice([[["Books", "Travel"]], ["Books", "War"], [], None]),
    }
    return (json.dumps(about) if rng.random() < 0.5 else repr(about)).encode()


def game(rng: random.Random) -> bytes:
    name = f"{title(rng)} {rng.randrange(10**6)}"
    about = {"app_name": name, "tags": ["RPG", "Indie"], "genres": rng.choice([[], ["Action"]])}
    return repr(about).encode()


def movie(rng: random.Random) -> bytes:
    name = rng.choice(["Heat (1995)", '"Matrix, The (1999)"', '"Say ""Hi"" (2001)"'])
    return (
        f"{rng.randrange(10**6)},{name},{rng.choice(['Drama|War', '(no genres listed)'])}".encode()
    )


def value_of(line: bytes) -> dict:
    """JSON, or a Python literal, of an object."""
    text = text_of(line)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise Bad from None
    if type(value) is not dict:
        raise Bad
    return value


def book_key(line: bytes) -> str:
    about = value_of(line)
    found = about.get("parent_asin") or about.get("asin")
    if type(found) is not str:
        raise Bad
    return found


def game_key(line: bytes) -> str:
    about = value_of(line)
    return (metadata.clean(about.get("app_name") or about.get("title")) or "").lower()


def movie_key(line: bytes) -> str:
    cells = split(line, 3)
    if not all(cells):
        raise Bad
    return cells[0]


class Catalogue(NamedTuple):
    """A format of metadata: how its lines are made, and what tells the item of each."""

    dataset: str
    header: bytes
    make: Callable[[random.Random], bytes]
    key: Callable[[bytes], str]
    lines: int


CATALOGUES = {
    "books": Catalogue("books", b"", book, book_key, 10_000),
    "steam": Catalogue("steam", b"", game, game_key, 3_000),
    "ml25m": Catalogue("ml25m", b"movieId,title,genres\n", movie, movie_key, 3_000),
}


def assert_sound(row: dict) -> None:
    """A row of metadata is bounded, and text that any file can hold."""
    assert row["title"] is None or 0 < len(row["title"]) <= metadata.TITLE_LENGTH
    assert len(row["text"]) <= metadata.TEXT_LENGTH
    assert len(row["categories"]) <= metadata.NAMES
    assert all(0 < len(name) <= metadata.NAME_LENGTH for name in row["categories"])
    for text in (row["title"] or "", row["text"], *row["categories"]):
        text.encode()
        assert text == " ".join(text.split())


@pytest.mark.filterwarnings("ignore:invalid:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("name", CATALOGUES)
def test_each_line_of_metadata_is_read_or_put_aside(tmp_path, name):
    kind = CATALOGUES[name]
    calm = damaged(kind.make, kind.lines // 10, seed=3, most=0)
    lines = calm + damaged(kind.make, kind.lines - len(calm), seed=4)
    random.Random(5).shuffle(lines)
    wanted = {kind.key(line) for line in calm}
    if name == "steam":
        wanted = {value_of(line)["app_name"] for line in calm}
    path = tmp_path / ("movies.csv" if name == "ml25m" else "meta.json")
    path.write_bytes(kind.header + b"".join(line + b"\n" for line in lines))
    aside = tmp_path / "quarantine.jsonl"
    with Quarantine(aside) as quarantine:
        found = metadata.LOADERS[name](path, wanted, quarantine)

    keys, bad = {}, set()
    full = [
        (n, line) for n, line in enumerate(lines, 1 + len(kind.header[:1])) if line.strip(BLANK)
    ]
    for number, line in full:
        try:
            keys[number] = kind.key(line)
        except Bad:
            bad.add(number)
    put_aside = [json.loads(line) for line in aside.read_text().splitlines()]
    numbers = {row["line"] for row in put_aside}
    assert found.read == len(full)
    assert sum(found.bad.values()) == len(put_aside) == len(numbers) > 0
    assert set(found.bad) == {row["reason"] for row in put_aside}
    # In a catalogue of books, lines of other books are not looked into.
    assert numbers <= bad
    assert name == "books" or numbers == bad
    rows = {row["source_id"]: row for row in found.frame.to_dicts()}
    assert len(rows) == len(found.frame)
    told = set(keys.values())
    assert set(rows) == {one for one in wanted if (one.lower() if name == "steam" else one) in told}
    for row in rows.values():
        assert_sound(row)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400), st.integers(1, 60))
def test_clean_text_is_bounded_and_one_line(text, length):
    found = metadata.clean(text, length)
    assert found is None or 0 < len(found) <= length
    if found is not None:
        found.encode()
        assert found == " ".join(found.split())


def test_there_are_a_hundred_thousand_lines():
    assert sum(kind.lines for kind in (*KINDS.values(), *CATALOGUES.values())) == 100_000
