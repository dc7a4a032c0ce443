"""One raw dialogue of ReDial, a line of JSON, to what was said, named and answered.

In: a line, and the films that are known. Out: a `Conversation`, or a `Damaged` that says what is
wrong: a dialogue is taken whole or not at all, since half of one would be other people's words.

    messages            [{text, senderWorkerId, ...}]   films in texts are @id
    movieMentions       {id: title or null}, or [] where there are none
    initiatorWorkerId   the seeker; respondentWorkerId is the recommender
    initiatorQuestions, respondentQuestions   {id: {suggested 0/1, seen 0/1/2, liked 0/1/2}} or []

Other keys, of which editions differ, are passed over.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from shielded_recrl.dialogue.corpus.dialogues import RECOMMENDER, SEEKER, SLOT
from shielded_recrl.dialogue.corpus.language import shares
from shielded_recrl.dialogue.corpus.quarantine import Damaged
from shielded_recrl.dialogue.settings import DialoguePrepareSettings

# The longest published line has 20 kB.
MAX_LINE = 1 << 20
# Counts of turns and of slots have to fit into 16 bits; published dialogues stay far below.
MAX_TURNS, MAX_TEXT = 1000, 50_000
MAX_TITLE = 300
MENTION = re.compile(r"@([0-9]+)")
# A text that spells a slot names no film.
SPELLED = re.compile(re.escape(SLOT), re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
FORMS = ("initiatorQuestions", "respondentQuestions")
ANSWERS = {"suggested": (0, 1), "seen": (0, 1, 2), "liked": (0, 1, 2)}


class Said(NamedTuple):
    """A turn: its role, its text with slots, and the raw ids of the films in them."""

    role: str
    text: str
    movies: tuple[str, ...]


class Answer(NamedTuple):
    """What a questionnaire says about a film; seen and liked: 0 no, 1 yes, 2 not said."""

    suggested: int
    seen: int
    liked: int


class Conversation(NamedTuple):
    """A sound dialogue.

    Attributes:
        id: its conversationId.
        turns: what was said.
        names: raw id -> title, with the year if there is one, of the films it brings along.
        answers: raw id -> the seeker's answer, or the recommender's where the seeker gave none.
    """

    id: str
    turns: tuple[Said, ...]
    names: dict[str, str]
    answers: dict[str, Answer]


def parse(line: bytes, known: Collection[str], settings: DialoguePrepareSettings) -> Conversation:
    """The dialogue of a line.

    Args:
        line: one line of the file.
        known: raw ids of films whose titles are known elsewhere.
        settings: bounds of the language.

    Raises:
        Damaged: it is none.
    """
    row = _row(line)
    name = _worker(row, "conversationId")
    try:
        return _conversation(name, row, known, settings)
    except Damaged as damage:
        damage.conversation = name
        raise


def _row(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise Damaged("line too long", f"{len(line)} bytes")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Damaged("not UTF-8", f"byte {error.start}") from None
    try:
        row = json.loads(text)
        # JSON may spell half a character, anywhere.
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Damaged("half a character") from None
    except (ValueError, RecursionError) as error:
        raise Damaged("broken JSON", str(error)) from None
    if not isinstance(row, dict):
        raise Damaged("broken JSON", f"{type(row).__name__}, no object")
    return row


def _conversation(
    name: str, row: dict[str, Any], known: Collection[str], settings: DialoguePrepareSettings
) -> Conversation:
    seeker, recommender = _worker(row, "initiatorWorkerId"), _worker(row, "respondentWorkerId")
    if seeker == recommender:
        raise Damaged("one speaker only", f"worker {seeker} on both sides")
    mentioned = _object(row, "movieMentions")
    names = {
        movie: clean(title)[:MAX_TITLE]
        for movie, title in mentioned.items()
        if isinstance(title, str) and clean(title) and MENTION.fullmatch(f"@{movie}")
    }
    turns = _turns(row, {seeker: SEEKER, recommender: RECOMMENDER})
    answers = _answers(row)
    films = [movie for turn in turns for movie in turn.movies]
    for movie in [*films, *answers]:
        if movie not in known and movie not in names:
            raise Damaged("unknown film", f"@{movie}")
    found = shares(turn.text for turn in turns)
    if found.ascii < settings.min_ascii:
        raise Damaged("not English", f"{found.ascii:.2f} of its letters are ASCII")
    if found.english < settings.min_english:
        raise Damaged("not English", f"{found.english:.2f} of its words are common English ones")
    if found.foreign > settings.max_foreign:
        raise Damaged("not English", f"{found.foreign:.2f} of its words are of another language")
    return Conversation(name, turns, names, answers)


def _turns(row: dict[str, Any], roles: Mapping[str, str]) -> tuple[Said, ...]:
    """Messages in a row of one worker, as one turn."""
    messages = _present(row, "messages")
    if not isinstance(messages, list):
        raise _wrong_type("messages", messages)
    if not messages:
        raise Damaged("no messages")
    said = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong_type(f"messages.{place}", message)
        worker, text = _worker(message, "senderWorkerId"), _present(message, "text")
        if worker not in roles:
            raise Damaged("unknown speaker", f"messages.{place}: worker {worker}")
        if not isinstance(text, str):
            raise _wrong_type(f"messages.{place}.text", text)
        said.append((roles[worker], text))
    turns = []
    for role, texts in groupby(said, key=lambda pair: pair[0]):
        whole = clean(" ".join(text for _, text in texts))
        if not whole:
            raise Damaged("empty turn", f"turn {len(turns)}, the {role}'s")
        turns.append(Said(role, MENTION.sub(SLOT, whole), tuple(MENTION.findall(whole))))
    if len(turns) == 1:
        raise Damaged("one speaker only", f"the {turns[0].role}")
    if len(turns) > MAX_TURNS or sum(len(turn.text) for turn in turns) > MAX_TEXT:
        raise Damaged("too long", f"{len(turns)} turns")
    return tuple(turns)


def clean(text: str) -> str:
    """A text without HTML entities, control characters, spelled slots and superfluous white space.

    >>> clean("Rock &amp;  roll,\\n&lt;movie&gt; @123 ")
    'Rock & roll, movie @123'
    """
    # With blanks around it, lest the brackets around a spelled slot spell another.
    text = SPELLED.sub(" movie ", CONTROL.sub(" ", html.unescape(text)))
    return " ".join(text.split())


def _answers(row: dict[str, Any]) -> dict[str, Answer]:
    """The answer about each film: the seeker's, or the recommender's where the seeker gave none."""
    answers: dict[str, Answer] = {}
    for form in FORMS:
        for movie, given in _object(row, form).items():
            if not isinstance(given, dict):
                raise _wrong_type(f"{form}.{movie}", given)
            for key, values in ANSWERS.items():
                value = _present(given, key)
                if isinstance(value, bool) or not isinstance(value, int) or value not in values:
                    raise Damaged("answer out of range", f"{form}.{movie}.{key}: {value!r:.40}")
            answers.setdefault(movie, Answer(**{key: given[key] for key in ANSWERS}))
    return answers


def _present(row: dict[str, Any], key: str) -> Any:
    if row.get(key) is None:
        raise Damaged("missing key", key)
    return row[key]


def _worker(row: dict[str, Any], key: str) -> str:
    """An id, which is a number here and a text there."""
    value = _present(row, key)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise _wrong_type(key, value)
    return str(value).strip()


def _object(row: dict[str, Any], key: str) -> dict[str, Any]:
    """An object; where it is empty the files have a list."""
    value = _present(row, key)
    if value == [] and isinstance(value, list):
        return {}
    if not isinstance(value, dict):
        raise _wrong_type(key, value)
    return value


def _wrong_type(key: str, value: Any) -> Damaged:
    return Damaged("wrong type", f"{key}: {type(value).__name__}")
