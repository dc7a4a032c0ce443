"""Raw dialogues to tables of turns, mentions, feedback and films, split by dialogue.

In: files of ReDial, in a folder or in the published zip. Out, in one folder:

    dialogues.parquet   dialogue (from 0), conversation (its id in the source), split
    turns.parquet       dialogue, turn, role, text: a `<movie>` for each film it names
    mentions.parquet    dialogue, turn, position (of the slot in the turn), item, is_repeat
    feedback.parquet    dialogue, item, suggested, seen, liked (0 no, 1 yes, 2 not said)
    items.parquet       item (from 1), movies (raw ids), title, year, categories, mentions (in train)
    stats.json          rows read, kept out and why; sizes; sha256 of the inputs
    quarantine.jsonl    file, row, conversation, reason, detail of all that was kept out

A dialogue is whole or kept out. One that is there twice is read once, and what is in a test file is
nowhere else: published subsets overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import tyro

from shielded_recrl.data.archive import byte_lines, extracted
from shielded_recrl.dialogue.corpus.dialogues import SPLITS
from shielded_recrl.dialogue.corpus.films import Catalogue, Genres, read_genres, read_names
from shielded_recrl.dialogue.corpus.quarantine import TWICE, Damaged, Quarantine
from shielded_recrl.dialogue.corpus.redial import Conversation, parse
from shielded_recrl.dialogue.corpus.tables import sizes, tables
from shielded_recrl.dialogue.settings import DialogueDataSettings, DialoguePrepareSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import SEAL, sealed, sha256, write_json, write_jsonl

DEFAULTS = DialoguePrepareSettings()
NAMES = DialogueDataSettings()
KEYS = "dialogue.data.train, dialogue.data.test, dialogue.data.movies"
DIALOGUES, FILMS = "one dialogue of ReDial a line", "one film a row"


def main(
    *,
    raw: Path,
    out: Path,
    train: tuple[str, ...] = NAMES.train,
    test: tuple[str, ...] = NAMES.test,
    movies: str = NAMES.movies,
    genres: Path | None = None,
    synthetic: bool = False,
    seed: int = 42,
    settings: Annotated[DialoguePrepareSettings, tyro.conf.arg(name="")] = DEFAULTS,
) -> None:
    """Turn raw dialogues into turns, mentions, feedback, films and splits.

    Args:
        raw: folder of the raw files, or the published zip.
        out: folder for the tables.
        train: files to learn from: names within `raw`, or absolute paths.
        test: files to be tested on, likewise.
        movies: file of film titles, likewise.
        genres: movies.csv of MovieLens, for the categories of films.
        synthetic: whether the raw files are the embedded ones; only written down.
        seed: draws the dialogues that validate.
        settings: split and bounds.
    """
    named = [*test, *train, movies]
    if again := sorted(name for name in set(named) if named.count(name) > 1):
        raise UserError(f"{again[0]}: named twice; expected other files in each of {KEYS}")
    quarantine = Quarantine()
    with ExitStack() as stack:
        paths = {name: stack.enter_context(_file(raw, name, out)) for name in named}
        labels = _labels([*named, *([] if genres is None else [str(genres)])])
        films, rows = read_names(paths[movies], labels[movies], quarantine)
        quarantine.refuse(labels[movies], rows, settings.max_bad_share, FILMS)
        reader = Reader(films, settings, quarantine)
        # Test files first: what is in them is kept from train.
        found = {name: reader.read(paths[name], labels[name]) for name in (*test, *train)}
        digests = {labels[name]: sha256(path) for name, path in paths.items()}
    read = {labels[movies]: rows, **reader.rows}
    categories = Genres()
    if genres is not None:
        label = labels[str(genres)]
        categories, read[label] = read_genres(_existing(genres), label, quarantine)
        quarantine.refuse(label, read[label], settings.max_bad_share, FILMS)
        digests[label] = sha256(genres)
    kept: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    kept["test"] = [conversation for name in test for conversation in found[name]]
    for name in train:
        for conversation in found[name]:
            kept[part(conversation.id, settings.valid_share, seed)].append(conversation)
    for split in SPLITS:
        if not kept[split]:
            raise UserError(
                f"{raw}: no dialogue for {split} ({sum(map(len, kept.values()))} are sound); name "
                "larger files in dialogue.data.train and dialogue.data.test, or change "
                "dialogue.data.valid_share"
            )
    catalogue = Catalogue()
    catalogue.add(films)
    for conversations in kept.values():
        for conversation in conversations:
            catalogue.add(conversation.names)
    made = tables(kept, catalogue, categories)
    for name, table in made.items():
        with sealed(out / f"{name}.parquet") as partial:
            table.write_parquet(partial, compression="snappy", statistics=False, metadata=SEAL)
    write_jsonl(out / "quarantine.jsonl", quarantine.rows)
    stats = {
        "synthetic": synthetic,
        "seed": seed,
        "settings": settings.model_dump(),
        "train": [labels[name] for name in train],
        "test": [labels[name] for name in test],
        "rows_read": read,
        "kept_out": {name: dict(counts) for name, counts in quarantine.counts.items() if counts},
        **sizes(made),
        "inputs": digests,
    }
    write_json(out / "stats.json", stats)
    counts = ", ".join(f"{split} {len(kept[split])}" for split in SPLITS)
    print(
        f"{out}: {sum(map(len, kept.values()))} dialogues ({counts}), {len(made['turns'])} turns, "
        f"{len(made['mentions'])} mentions of {len(made['items'])} films, "
        f"{len(quarantine.rows)} rows kept out; next: python -m shielded_recrl.dialogue annotate"
    )


class Reader:
    """Reads files one after the other, each dialogue at most once.

    Attributes:
        rows: file -> rows read.
    """

    def __init__(
        self, names: dict[str, str], settings: DialoguePrepareSettings, quarantine: Quarantine
    ) -> None:
        """
        Args:
            names: raw id -> name of the films that are known.
            settings: bounds.
            quarantine: takes what is kept out.
        """
        self.rows: dict[str, int] = {}
        self._names, self._settings, self._quarantine = names, settings, quarantine
        # What makes two dialogues the same -> where the first of them is.
        self._seen: dict[str, str] = {}

    def read(self, path: Path, file: str) -> list[Conversation]:
        """The sound dialogues of a file.

        Raises:
            UserError: too much of it is damaged.
        """
        found = []
        self.rows[file] = 0
        for row, line in enumerate(byte_lines(path), start=1):
            if line.isspace():
                continue
            self.rows[file] += 1
            try:
                conversation = parse(line, self._names, self._settings)
                self._require_new(conversation, file)
                found.append(conversation)
            except Damaged as bad:
                self._quarantine.add(file, row, bad.reason, bad.detail, bad.conversation)
        share = self._settings.max_bad_share
        self._quarantine.refuse(file, self.rows[file], share, DIALOGUES)
        return found

    def _require_new(self, conversation: Conversation, file: str) -> None:
        """Refuse a dialogue that was read before, be it under another id."""
        said = "\n".join(f"{turn.text}\n{turn.movies}" for turn in conversation.turns)
        marks = (f"id {conversation.id}", f"text {hashlib.sha256(said.encode()).hexdigest()}")
        for mark in marks:
            if mark in self._seen:
                damage = Damaged(TWICE, f"also in {self._seen[mark]}")
                damage.conversation = conversation.id
                raise damage
        self._seen.update(dict.fromkeys(marks, file))


def part(conversation: str, valid_share: float, seed: int) -> str:
    """Whether a dialogue trains or validates: drawn by its id, whatever the others are."""
    digest = hashlib.sha256(f"{seed} {conversation}".encode()).digest()
    return "valid" if int.from_bytes(digest[:8]) < valid_share * 2**64 else "train"


@contextmanager
def _file(raw: Path, name: str, out: Path) -> Iterator[Path]:
    """A file of the source; one in a zip is unpacked meanwhile."""
    if raw.is_file() and not Path(name).is_absolute():
        with extracted(raw, name, out) as unpacked:
            yield unpacked
        return
    yield _existing(raw / name)


def _existing(path: Path) -> Path:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; name the files in {KEYS} or dialogue.data.genres")
    return path


def _labels(names: Sequence[str]) -> dict[str, str]:
    """What results call the files: by name, so that they do not depend on where the files lie."""
    alone = len({Path(name).name for name in names}) == len(names)
    return {name: Path(name).name if alone else name for name in names}
