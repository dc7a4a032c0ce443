"""The key of a sheet: who wrote what, on which side, and which rows are repeats or checks.

In: key.json. Out: a typed `Key`. The key holds the texts as the models wrote them, so that whoever
has it needs no other file to know what a rater, or a judge, was shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json
from shielded_recrl.report.human.settings import Compare
from shielded_recrl.settings import Strict

Answer = Literal["left", "right", "tie"]
ANSWERS: tuple[Answer, ...] = ("left", "right", "tie")
SWAPPED: dict[Answer, Answer] = {"left": "right", "right": "left", "tie": "tie"}


class Row(Strict):
    """One row of the sheet."""

    id: str = Field(min_length=1, description="Drawn at random; all that the sheet tells.")
    kind: Literal["pair", "repeat", "check"] = Field(description="What the row is for.")
    of: str | None = Field(None, description="Of a repeat: the id of the first showing.")
    dataset: str = Field(description="Key of the dataset.")
    seed: int = Field(description="Seed of the runs that wrote the texts.")
    user: int = Field(description="User recommended to.")
    item: int = Field(description="Item recommended.")
    title: str = Field(description="Title of the item.")
    categories: list[str] = Field(description="Categories of the item.")
    history: list[str] = Field(description="Titles of the user's history, as prompted.")
    left: str = Field(description="System that wrote the left text; of a check, sound or fault.")
    right: str = Field(description="System that wrote the right text; of a check, sound or fault.")
    left_text: str = Field(description="The left text.")
    right_text: str = Field(description="The right text.")
    sound: Literal["left", "right"] | None = Field(
        None, description="Of a check: the side that is sound."
    )


class Comparison(Strict):
    """Two systems that wrote texts for the same recommendations."""

    dataset: str = Field(description="Key of the dataset.")
    a: str = Field(description="The system whose wins are counted.")
    b: str = Field(description="The system it is compared with.")
    contexts: int = Field(ge=0, description="Recommendations that both explained.")
    identical: int = Field(ge=0, description="Those with the same text from both: never shown.")


class Key(Strict):
    """Everything about a sheet that its raters must not know."""

    seed: int = Field(description="Seed of the drawing.")
    compare: Compare = Field(description="What was compared.")
    question: str = Field(description="What the raters were asked.")
    comparisons: list[Comparison] = Field(min_length=1, description="In the order of the runs.")
    rows: list[Row] = Field(min_length=1, description="In the order of the sheet.")

    @model_validator(mode="after")
    def _whole(self) -> Key:
        ids = {row.id: row for row in self.rows}
        if len(ids) < len(self.rows):
            raise ValueError("two rows have the same id; draw the sheet again")
        compared = {(one.dataset, *sorted((one.a, one.b))) for one in self.comparisons}
        for row in self.rows:
            if row.kind == "repeat" and (row.of not in ids or ids[row.of].kind != "pair"):
                raise ValueError(f"row {row.id} repeats no pair of the sheet; draw it again")
            if row.kind == "check" and row.sound is None:
                raise ValueError(f"check {row.id} has no sound side; draw the sheet again")
            if row.kind == "pair" and (row.dataset, *sorted((row.left, row.right))) not in compared:
                raise ValueError(f"row {row.id} is of no comparison; draw the sheet again")
        return self

    def of_kind(self, kind: str) -> list[Row]:
        """The rows of one kind, in the order of the sheet."""
        return [row for row in self.rows if row.kind == kind]


def read_key(path: Path) -> Key:
    """Read a key.

    Raises:
        UserError: the file is missing, damaged, or no key of a sheet.
    """
    try:
        return Key.model_validate(read_json(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; draw it with `report.human sheet`") from None
    except ValidationError as error:
        raise UserError(f"{path}: not the key of a sheet ({fault(error)})") from None


def fault(error: ValidationError) -> str:
    """Where a document fails first, and how; not what it holds there, which may be all of it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
