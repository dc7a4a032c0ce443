"""Score gold, sampled and corrupted responses with the judges.

In: prepared dialogues, emotions, recommendations, the base LM and its supervised adapter. Out:
`judged.parquet`, see `judged`: for some turns of train and valid what a person answered, what the
supervised LM answers, and the person's answer with one fault each. No turn of test is read: on those
responses are compared later.

`rules` judges every row. `unseen` learned from the train split, and judges valid. Language models,
where some are named, judge every row; what they answered is kept in a scratch folder, so that a run
that was cut goes on.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import polars as pl
import tyro
from tqdm import tqdm

from shielded_recrl.dialogue.critique.judged import (
    CORRUPTED,
    GOLD,
    KEYS,
    SAMPLED,
    columns,
    save_judged,
)
from shielded_recrl.dialogue.inputs import ResponseInputs
from shielded_recrl.dialogue.judges.base import HEADS, Case, Judge
from shielded_recrl.dialogue.judges.rules import Rules
from shielded_recrl.dialogue.judges.unseen import Unseen
from shielded_recrl.dialogue.response.corrupt import FAULTS, Elsewhere, corruptions
from shielded_recrl.dialogue.response.prompts import ResponsePrompts, ResponseRequest, spread
from shielded_recrl.dialogue.settings import JudgeSettings
from shielded_recrl.errors import UserError

# Of the seed of sampling; `evaluate` has another.
STREAM = 1
SPLITS = ("train", "valid")
CACHE = "answers.jsonl"
FOREIGN = "foreign"


class Response(NamedTuple):
    """A response to be judged."""

    request: ResponseRequest
    split: str
    kind: str
    text: str

    @property
    def case(self) -> Case:
        """As judges are given it, without the person's response."""
        return Case(self.request.context, self.text, self.request.recommended)


def main(
    *,
    inputs: Annotated[ResponseInputs, tyro.conf.arg(name="")],
    adapter: Path,
    out: Path,
    scratch: Path,
    settings: Annotated[JudgeSettings, tyro.conf.arg(name="")],
) -> None:
    """Score gold, sampled and corrupted responses with the judges.

    Args:
        inputs: what responses are written from.
        adapter: folder of the supervised adapter.
        out: judged.parquet to write.
        scratch: folder of the language models' answers; they are kept, since each was paid for.
        settings: how many turns are judged, and by whom.
    """
    prompts, seed = inputs.prompts(), inputs.seed
    sizes = (settings.train_turns, settings.valid_turns)
    chosen = {
        split: spread(prompts.requests(split), most)
        for split, most in zip(SPLITS, sizes, strict=True)
    }
    for split, requests in chosen.items():
        if not requests:
            raise UserError(
                f"{inputs.data}: no turn of a recommender in {split}; give more dialogues"
            )
    sampled = sample(inputs, prompts, chosen, adapter, settings.temperature)
    titles = catalogue(prompts)
    rows = [
        row
        for split, requests in chosen.items()
        for row in responses(split, requests, sampled[split], titles, seed, settings.foreign)
    ]
    judges: dict[str, Judge] = {
        "rules": Rules(titles),
        "unseen": Unseen.fit(prompts.dialogues.split("train")),
    }
    table = judged(rows, judges, held_out=("unseen",))
    if settings.models:
        from shielded_recrl.dialogue.judges.llm import ask_all

        table = table.hstack(
            ask_all([row.case for row in rows], settings, scratch / CACHE, "dialogue.judge")
        )
    save_judged(out, table)
    counts = Counter(row.kind for row in rows)
    print(f"{out}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))


def catalogue(prompts: ResponsePrompts) -> list[str]:
    """Titles of all films, in order."""
    dialogues = prompts.dialogues
    return [dialogues.title(item) for item in range(1, dialogues.n_items + 1)]


def sample(
    inputs: ResponseInputs,
    prompts: ResponsePrompts,
    chosen: dict[str, list[ResponseRequest]],
    adapter: Path,
    temperature: float,
) -> dict[str, list[str]]:
    """A response of the supervised LM to each request, by split."""
    from shielded_recrl.dialogue.response.generation import generate, uniform_numbers
    from shielded_recrl.explainer.base import default_device, load_base
    from shielded_recrl.explainer.lm import load_adapter
    from shielded_recrl.rl.settings import SamplingSettings

    base = load_base(inputs.base, inputs.precision, default_device())
    model = load_adapter(base, adapter)
    return {
        split: generate(
            model,
            prompts.tokenizer,
            [prompts.ids(request) for request in requests],
            uniform_numbers([inputs.seed, STREAM, place], len(requests), inputs.response_tokens),
            SamplingSettings(temperature=temperature, top_p=1.0),
        )
        for place, (split, requests) in enumerate(chosen.items(), start=1)
    }


def responses(
    split: str,
    requests: Sequence[ResponseRequest],
    sampled: Sequence[str],
    titles: Sequence[str],
    seed: int,
    foreign: int = 1,
) -> list[Response]:
    """What is judged in a split: each gold response, the sampled one, and those with a fault.

    Args:
        split: its name.
        requests: the turns.
        sampled: the supervised LM's response to each.
        titles: of all films.
        seed: of the faults.
        foreign: responses from other dialogues of the split for each turn, at the most; every other
            fault comes once.
    """
    elsewhere = Elsewhere(requests, titles)
    rows = []
    for request, text in zip(requests, sampled, strict=True):
        rows.append(Response(request, split, GOLD, request.gold))
        rows.append(Response(request, split, SAMPLED, text))
        for how in FAULTS:
            draws = foreign if how == FOREIGN else 1
            for faulty in corruptions(how, request, elsewhere, seed, draws):
                rows.append(Response(request, split, CORRUPTED + how, faulty))
    return rows


def judged(
    rows: Sequence[Response], judges: dict[str, Judge], held_out: Sequence[str] = ()
) -> pl.DataFrame:
    """The table of responses and their scores.

    Args:
        rows: what is judged.
        judges: by name.
        held_out: names of judges that learned from the train split, and leave it out.
    """
    cells = {
        "dialogue": [row.request.dialogue for row in rows],
        "turn": [row.request.turn for row in rows],
        "split": [row.split for row in rows],
        "kind": [row.kind for row in rows],
        "text": [row.text for row in rows],
    }
    scores: dict[str, list[float | None]] = {
        name: [] for judge in judges for name in columns(judge)
    }
    for row in tqdm(rows, desc="judge", unit="response", disable=not sys.stderr.isatty()):
        for name, judge in judges.items():
            if name in held_out and row.split == "train":
                found = dict.fromkeys(HEADS)
            else:
                found = judge(row.case)
            for head in HEADS:
                scores[f"{name}_{head}"].append(found[head])
    schema = KEYS | dict.fromkeys(scores, pl.Float32)
    return pl.DataFrame(cells | scores, schema=schema)
