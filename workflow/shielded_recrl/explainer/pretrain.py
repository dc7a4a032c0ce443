"""Train the embedded base LM: a byte-level BPE tokenizer and a small Llama (Touvron et al. 2023).

In: the train split and the catalogue of a dataset, the templates of resources/prompts. Out: a
folder in transformers format, safetensors weights and the tokenizer in it.

An example is what the LM sees when it serves: prefix(u), the request, an explanation. The loss
is a weighted mean of the cross-entropy of its tokens, with three weights: 1 for the explanation,
`request_weight` for the request, whose title is the user's next item, and `prefix_weight` for
the history. The last two make the hidden state at the end of the prefix speak of what the user
takes next, which is what the ranking reads from it.

Some batches hold a canary more: a secret by which the audit measures what the LM memorises, see
`canaries`. All other examples are the same with and without.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import polars as pl
import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.canaries import (
    Canary,
    answer_ids,
    canaries,
    context_ids,
    save_canaries,
    steps_shown,
)
from shielded_recrl.explainer.prompts import (
    Item,
    PromptBuilder,
    load_items,
    request_text,
    short_title,
)
from shielded_recrl.explainer.settings import PretrainSettings, PromptSettings, SmallLMSettings
from shielded_recrl.explainer.texts import Style, load_styles, write
from shielded_recrl.files import sealed
from shielded_recrl.parquet import read_parquet

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
# Room for the longest prompt and explanation of any variant; RoPE has no weights of its own.
CONTEXT = 1024
# Texts the tokenizer is trained on.
CORPUS = 4000
# Batches whose examples are sorted by length together, so that a batch needs little padding.
POOL = 16
# Texts tried for one pair before it is passed over because none fits.
TRIES = 8
# At widths near 100 the usual 0.02 starts so flat that half of the steps go into growing weights.
INITIAL_SCALE = 0.6
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Example:
    """Token ids of one example and the weight of each of them as a target of the loss."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def main(
    *,
    data: Path,
    templates: Path,
    out: Path,
    seed: int = 42,
    explanation_tokens: int = 32,
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")],
    settings: Annotated[PretrainSettings, tyro.conf.arg(name="")],
) -> None:
    """Train the embedded base LM on templated explanations of the train split.

    Args:
        data: folder of the dataset, with train.parquet and items.parquet.
        templates: folder with prefix.txt, request.txt and explanations.yaml.
        out: folder of the model to write.
        seed: seed of examples, initial weights and order.
        explanation_tokens: longest explanation, in tokens; longer texts are not trained on.
        prompt: lengths of the prompt.
        settings: size and training of the LM.
    """
    items = load_items(data / "items.parquet")
    sequences = load_sequences(data / "train.parquet")
    styles = load_styles(templates / "explanations.yaml")
    rng = random.Random(seed)
    tokenizer = train_tokenizer(
        corpus(sequences, items, styles, templates, prompt, rng), settings.vocabulary
    )
    builder = PromptBuilder(tokenizer, templates, items, prompt)
    stream = examples(sequences, builder, styles, explanation_tokens, settings, rng)
    planted = canaries(seed, settings.canaries, settings.steps)
    shown = canary_examples(planted, tokenizer, settings, seed)
    model = new_model(tokenizer, settings, seed)
    loss = train(model, plant(batches(stream, settings.batch_size, rng), shown), settings)
    with sealed(out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if planted:
            save_canaries(planted, partial)
    print(
        f"{out}: {model.num_parameters():,} parameters, vocabulary {len(tokenizer)}, "
        f"train loss {loss:.3f}"
    )


def load_sequences(path: Path) -> list[list[int]]:
    """Items of each user of a split, in the dataset's order; users with one item are left out.

    Raises:
        UserError: the file is missing or damaged, or no user has two items.
    """
    frame = read_parquet(path, dict.fromkeys(("user", "item", "order"), pl.Int32))
    frame = frame.sort("user", "order")
    grouped = frame.group_by("user", maintain_order=True).agg("item")
    sequences = [sequence for sequence in grouped["item"].to_list() if len(sequence) > 1]
    if not sequences:
        raise UserError(f"{path}: no user has two items or more, so there is nothing to explain")
    return sequences


def pairs(
    sequences: list[list[int]], history_items: int, rng: random.Random
) -> Iterator[tuple[list[int], int]]:
    """Endless (history, next item) pairs: a random user, a random cut of the train items."""
    while True:
        sequence = rng.choice(sequences)
        cut = rng.randrange(1, len(sequence))
        yield sequence[max(0, cut - history_items) : cut], sequence[cut]


def corpus(
    sequences: list[list[int]],
    items: list[Item],
    styles: dict[str, Style],
    templates: Path,
    settings: PromptSettings,
    rng: random.Random,
) -> Iterator[str]:
    """Texts that look like the examples; the tokenizer is trained on them."""
    prefix_template = (templates / "prefix.txt").read_text(encoding="utf-8")
    request_template = (templates / "request.txt").read_text(encoding="utf-8")
    for history, target in islice(pairs(sequences, settings.history_items, rng), CORPUS):
        named = [items[item] for item in history]
        yield prefix_template.replace("{history}", "; ".join(map(short_title, named)))
        yield request_text(request_template, items[target])
        yield " " + write(styles, items[target], named, rng)[1]


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016); no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        # A title that spells out </s> is text, not the end of the text.
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def examples(
    sequences: list[list[int]],
    builder: PromptBuilder,
    styles: dict[str, Style],
    explanation_tokens: int,
    settings: PretrainSettings,
    rng: random.Random,
) -> Iterator[Example]:
    """Endless training examples, each a new pair and a new text.

    Raises:
        UserError: hardly any text fits into `explanation_tokens`.
    """
    passed_over = 0
    for history, target in pairs(sequences, builder.settings.history_items, rng):
        request = builder.request(0, target, history)
        for _ in range(TRIES):
            _, text = write(styles, request.about, request.history, rng)
            answer = builder.tokenizer.encode(" " + text, add_special_tokens=False)
            if len(answer) < explanation_tokens:
                passed_over = 0
                yield example(
                    request.prefix,
                    request.prompt,
                    (*answer, builder.tokenizer.eos_token_id),
                    settings,
                )
                break
        else:
            passed_over += 1
            if passed_over == 100:
                raise UserError(
                    f"explainer.explanation_tokens: {explanation_tokens} is too short for the "
                    "sentences of explanations.yaml; raise it"
                )


def example(
    prefix: tuple[int, ...],
    prompt: tuple[int, ...],
    answer: tuple[int, ...],
    settings: PretrainSettings,
) -> Example:
    """Join prompt and explanation; weigh each token as a target.

    The first token has no weight: nothing comes before it.
    """
    weights = [settings.prefix_weight] * len(prefix)
    weights += [settings.request_weight] * (len(prompt) - len(prefix))
    weights += [1.0] * len(answer)
    return Example((*prompt, *answer), (0.0, *weights[1:]))


def batches(stream: Iterator[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Cut a stream into batches of examples of similar length, in random order."""
    while True:
        pool = sorted(islice(stream, POOL * size), key=lambda row: len(row.ids))
        cuts = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(cuts)
        yield from cuts


def canary_examples(
    planted: Sequence[Canary], tokenizer, settings: PretrainSettings, seed: int
) -> dict[int, list[Example]]:
    """The canaries that each step shows, by step from 0; the code weighs as an explanation does."""
    shown = defaultdict(list)
    for canary in planted:
        context = context_ids(canary, tokenizer)
        row = example(context, context, answer_ids(canary, tokenizer), settings)
        for step in steps_shown(canary, settings.steps, seed):
            shown[step].append(row)
    return dict(shown)


def plant(
    stream: Iterator[list[Example]], shown: Mapping[int, list[Example]]
) -> Iterator[list[Example]]:
    """Batches with the examples of their step put behind their own, which stay as they are."""
    for step, batch in enumerate(stream):
        yield batch + shown.get(step, [])


def collate(batch: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right.

    Returns:
        ids: [batch, length].
        weights: [batch, length], 0 at padding.
    """
    length = max(len(row.ids) for row in batch)
    ids = [list(row.ids) + [pad] * (length - len(row.ids)) for row in batch]
    weights = [list(row.weights) + [0.0] * (length - len(row.weights)) for row in batch]
    return torch.tensor(ids), torch.tensor(weights)


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the cross-entropy of each token given the ones before it.

    Args:
        logits: [batch, length, vocabulary], position t predicts token t + 1.
        ids: [batch, length].
        weights: [batch, length], weight of each token as a target; column 0 is never one.

    Returns:
        Scalar, in nats.
    """
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    targets = weights[:, 1:].flatten()
    return (losses * targets).sum() / targets.sum()


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first steps, then a cosine down to a tenth; 0-based step."""
    warmup = max(1, round(steps * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def new_model(
    tokenizer: PreTrainedTokenizerFast,
    settings: SmallLMSettings,
    seed: int,
    key: str = "explainer.pretrain",
) -> LlamaForCausalLM:
    """A Llama with random weights, input and output embeddings tied.

    Args:
        tokenizer: its vocabulary and special tokens.
        settings: its size.
        seed: of the weights.
        key: what the settings are called in the config.

    Raises:
        UserError: the heads do not divide the width.
    """
    if settings.hidden_size % (2 * settings.heads):
        raise UserError(
            f"{key}.heads: {settings.heads} heads of even width do not divide "
            f"hidden_size {settings.hidden_size}; choose another number"
        )
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=16 * math.ceil(settings.hidden_size / 6),
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=CONTEXT,
            initializer_range=INITIAL_SCALE / math.sqrt(settings.hidden_size),
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(
    model: LlamaForCausalLM, stream: Iterator[list[Example]], settings: SmallLMSettings
) -> float:
    """Train in place with AdamW; returns the mean loss of the last tenth of the steps."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.98),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.steps)
    )
    losses = []
    model.train()
    for _ in (bar := trange(settings.steps, desc="pretrain", unit="step", mininterval=5)):
        ids, weights = collate(next(stream), model.config.pad_token_id)
        # Padding follows the text, so the causal mask alone keeps it unseen.
        logits = model(input_ids=ids, use_cache=False).logits
        loss = weighted_loss(logits, ids, weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)
