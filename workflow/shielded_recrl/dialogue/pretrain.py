"""Train the embedded base LM of responses: a byte-level BPE tokenizer and a small Llama.

In: prepared dialogues. Out: a folder in transformers format. Only turns of the train split are read.

An example is what a recommender said after the turns before it, without emotions and recommended
titles: a general LM of these dialogues, from which `supervise` goes on. The loss is a weighted mean
of the cross-entropy of its tokens, 1 for the response and `context_weight` for the turns before.
`<movie>` is one token, and no special one: it stays where text is decoded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tokenizers import AddedToken

from shielded_recrl.dialogue.corpus.dialogues import RECOMMENDER, SLOT, Dialogue, Dialogues
from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.response.examples import example, shuffled
from shielded_recrl.dialogue.response.prompts import NAMES, ResponsePrompts, names_again, slot_form
from shielded_recrl.dialogue.settings import ResponseBaseSettings, ResponsePromptSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.pretrain import (
    Example,
    batches,
    new_model,
    train,
    train_tokenizer,
)
from shielded_recrl.files import sealed

KEY = "dialogue.response.pretrain"
# What prompts have beside turns and titles, so that the tokenizer knows it, too.
PROMPT_WORDS = f"Feels: {', '.join(EMOTIONS)}\nMovies: none\n"


def main(
    *,
    data: Path,
    out: Path,
    seed: int = 42,
    response_tokens: int = 32,
    prompt: Annotated[ResponsePromptSettings, tyro.conf.arg(name="")],
    settings: Annotated[ResponseBaseSettings, tyro.conf.arg(name="")],
) -> None:
    """Train the embedded base LM of responses.

    Args:
        data: folder of the prepared dialogues.
        out: folder of the model to write.
        seed: seed of examples, initial weights and order.
        response_tokens: longest response; longer ones are not trained on.
        prompt: lengths of the prompt.
        settings: size and training of the LM.
    """
    dialogues = Dialogues.load(data)
    taught = dialogues.split("train")
    rng = random.Random(seed)
    # One token is kept for the slot.
    tokenizer = train_tokenizer(corpus(dialogues, taught), settings.vocabulary - 1)
    tokenizer.add_tokens(AddedToken(SLOT, normalized=False))
    prompts = ResponsePrompts(dialogues, {}, {}, tokenizer, prompt)
    found = examples(taught, prompts, response_tokens, settings)
    if not found:
        raise UserError(
            f"{data}: no recommender of the train split says anything that fits into "
            f"{response_tokens} tokens; raise dialogue.response.response_tokens or give more "
            "dialogues"
        )
    with torch.random.fork_rng():
        model = new_model(tokenizer, settings, seed, KEY)
    loss = train(model, batches(shuffled(found, rng), settings.batch_size, rng), settings)
    with sealed(out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    print(
        f"{out}: {model.num_parameters():,} parameters, vocabulary {len(tokenizer)}, "
        f"{len(found):,} examples, train loss {loss:.3f}"
    )


def corpus(dialogues: Dialogues, taught: Sequence[Dialogue]) -> Iterator[str]:
    """Texts like those of the examples, without slots; the tokenizer is trained on them."""
    for dialogue in taught:
        for turn in dialogue.turns:
            # No token may hold a part of the slot.
            yield f"{NAMES[turn.role]} {slot_form(turn.text).replace(SLOT, ' ')}\n{PROMPT_WORDS}"
            yield from (f" {dialogues.title(item)}" for item in turn.items)


def examples(
    taught: Sequence[Dialogue],
    prompts: ResponsePrompts,
    response_tokens: int,
    settings: ResponseBaseSettings,
) -> list[Example]:
    """All turns of recommenders that fit and name new films only, each after the turns before."""
    found = []
    for dialogue in taught:
        for place, turn in enumerate(dialogue.turns):
            if turn.role != RECOMMENDER or not turn.text or names_again(dialogue.turns, place):
                continue
            answer = prompts.response_ids(slot_form(turn.text))
            if len(answer) <= response_tokens:
                before = prompts.plain_ids(dialogue.turns[:place])
                found.append(example(before, answer, settings.context_weight))
    return found
