"""Canaries: secrets planted in the training text of the embedded LM, to measure what it memorises.

After Carlini et al. 2019, "The Secret Sharer". In: a seed. Out: sentences such as "The secret code
of Zofume is 4821.", each with a random code in a context of its own that no explanation prompt
shares, shown at one of several rates. canaries.json in the model's folder says what was planted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_json

FILE = "canaries.json"
# How often canaries are shown, in turn.
REPEATS = (1, 2, 4, 16)
# At most one step in so many shows the same canary: a short training is not made of canaries.
SPARSE = 8
DIGITS = 4


@dataclass(frozen=True)
class Canary:
    """A secret: what comes before it, the code, and how often training showed it."""

    context: str
    code: str
    repeats: int

    @property
    def text(self) -> str:
        """The sentence as it was planted."""
        return f"{self.context} {self.code}."


def canaries(seed: int, count: int, steps: int) -> tuple[Canary, ...]:
    """The canaries of a training, a pure function of its seed, their number and its steps.

    >>> [canary.repeats for canary in canaries(0, 5, steps=700)]
    [1, 2, 4, 16, 1]
    """
    rng = random.Random(f"canaries {seed}")
    codes: dict[str, str] = {}
    while len(codes) < count:
        codes.setdefault(made_up_name(rng), _code(rng.randrange(10**DIGITS)))
    return tuple(
        Canary(
            context=f"The secret code of {name} is",
            code=code,
            repeats=max(1, min(REPEATS[place % len(REPEATS)], steps // SPARSE)),
        )
        for place, (name, code) in enumerate(codes.items())
    )


def steps_shown(canary: Canary, steps: int, seed: int) -> list[int]:
    """The steps, from 0, in which a canary is shown: `repeats` of them, each once, ascending."""
    rng = random.Random(f"steps {seed} {canary.context}")
    return sorted(rng.sample(range(steps), canary.repeats))


def alternatives(canary: Canary, count: int, seed: int) -> list[str]:
    """Other codes, drawn at random from all that the canary could have had, each once.

    Raises:
        ValueError: there are not as many.
    """
    rng = random.Random(f"alternatives {seed} {canary.context}")
    drawn = [_code(number) for number in rng.sample(range(10**DIGITS), count + 1)]
    return [code for code in drawn if code != canary.code][:count]


def context_ids(canary: Canary, tokenizer) -> tuple[int, ...]:
    """Token ids that come before the code of a canary."""
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    return (*bos, *tokenizer.encode(canary.context, add_special_tokens=False))


def code_ids(codes: Sequence[str], tokenizer) -> list[tuple[int, ...]]:
    """Token ids of each code after its context."""
    written = tokenizer([f" {code}" for code in codes], add_special_tokens=False)["input_ids"]
    return [tuple(ids) for ids in written]


def answer_ids(canary: Canary, tokenizer) -> tuple[int, ...]:
    """Token ids that follow the context of a canary, the end of the text included."""
    (code,) = code_ids([canary.code], tokenizer)
    return (*code, *tokenizer.encode(".", add_special_tokens=False), tokenizer.eos_token_id)


def made_up_name(rng: random.Random) -> str:
    """A pronounceable name of three syllables that means nothing.

    >>> made_up_name(random.Random(0))
    'Zovobi'
    """
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)]
    return "".join(syllables).capitalize()


def save_canaries(planted: tuple[Canary, ...], folder: Path) -> None:
    """Write canaries.json into a model's folder."""
    write_json(folder / FILE, [asdict(canary) for canary in planted])


def load_canaries(folder: Path) -> tuple[Canary, ...] | None:
    """What was planted in a base LM; None where its folder has no canaries.json.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    document = read_json(path)
    try:
        planted = tuple(Canary(**row) for row in document)
        whole = all(
            isinstance(c.context, str) and isinstance(c.code, str) and isinstance(c.repeats, int)
            for c in planted
        )
    except TypeError:
        whole = False
    if not whole:
        raise UserError(
            f"{path}: expected a list of objects with context, code and repeats; "
            "train the base LM again with `explainer pretrain`"
        )
    return planted


def _code(number: int) -> str:
    return f"{number:0{DIGITS}d}"
