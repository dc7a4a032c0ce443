"""The critic: an encoder over "context [SEP] response" with one regression head for each of `HEADS`.

Built on the frozen learned critic of `rl.rewards.critic`: here is what it reads, and a small encoder
to start from where none is given.

In: a folder, or texts for a tokenizer and sizes. Out: scores [n, 5] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from shielded_recrl.dialogue.corpus.dialogues import Turn
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.settings import CriticTrainingSettings
from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import intact
from shielded_recrl.rl.rewards.critic import WEIGHTS, LearnedCritic

CONTEXT_TURNS, MAX_TOKENS = "context_turns", "max_tokens"
INITIAL_SCALE = 0.1


class Critic:
    """Scores responses by a frozen encoder."""

    def __init__(self, model: nn.Module, tokenizer, context_turns: int, max_tokens: int):
        """
        Args:
            model: a sequence classifier with a logit for each of `HEADS`; is frozen.
            tokenizer: the model's.
            context_turns: last turns that it reads.
            max_tokens: of context and response.
        """
        self.context_turns, self.max_tokens = context_turns, max_tokens
        self.learned = LearnedCritic(
            model, tokenizer, HEADS, batch_size=64, max_tokens=max_tokens, read_prompt=True
        )

    @classmethod
    def load(cls, folder: Path, device: torch.device | None = None) -> Self:
        """Read a critic that `save` wrote.

        Raises:
            UserError: a file is missing or damaged, or it is a critic of other heads.
        """
        learned = LearnedCritic.load(folder)
        config = learned.model.config
        lengths = [getattr(config, name, None) for name in (CONTEXT_TURNS, MAX_TOKENS)]
        if learned.heads != HEADS or not all(type(number) is int for number in lengths):
            raise UserError(
                f"{folder}: no critic of the heads {', '.join(HEADS)}; give the folder that "
                "`python -m shielded_recrl.dialogue critic` wrote"
            )
        return cls(learned.model.to(device or "cpu"), learned.tokenizer, *lengths)

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads."""
        setattr(self.learned.model.config, CONTEXT_TURNS, self.context_turns)
        setattr(self.learned.model.config, MAX_TOKENS, self.max_tokens)
        self.learned.save(folder)

    def __call__(self, contexts: Sequence[Sequence[Turn]], responses: Sequence[str]) -> Tensor:
        """Scores, float32 [n, 5] in the order of `HEADS`, on the CPU; an empty response has 0.

        Args:
            contexts: the turns before each response, oldest first.
            responses: in slot form.

        Raises:
            UserError: the critic is no longer as it was frozen.
        """
        prompts = [context_text(context, self.context_turns) for context in contexts]
        heads = self.learned(prompts, responses, contexts)
        scores = torch.stack([heads[name] for name in HEADS], dim=1)
        scores[[not text.strip() for text in responses]] = 0.0
        return scores


def context_text(context: Sequence[Turn], turns: int) -> str:
    """The last turns as the critic reads them.

    >>> context_text([Turn("seeker", "Hi", ()), Turn("recommender", "Hello!", ())], 2)
    'seeker: Hi recommender: Hello!'
    """
    return (
        " ".join(f"{turn.role}: {turn.text}" for turn in context[len(context) - turns :])
        if turns
        else ""
    )


def new_encoder(
    texts: Iterable[str], settings: CriticTrainingSettings, seed: int
) -> tuple[nn.Module, object]:
    """A small encoder with weights yet to be trained, and a tokenizer trained on texts.

    A ModernBERT (Warner et al. 2024), whose mean over tokens learns from few texts what a [CLS]
    token learns from many.

    Raises:
        UserError: the number of heads does not divide the width.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    from shielded_recrl.explainer.pretrain import BOS, EOS, train_tokenizer

    if settings.hidden_size % settings.heads:
        raise UserError(
            f"dialogue.critic.heads: {settings.heads} does not divide hidden_size "
            f"{settings.hidden_size}; change one of them"
        )
    tokenizer = train_tokenizer(iter(texts), settings.vocabulary)
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} $B {EOS}", special_tokens=ends
    )
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=max(settings.max_tokens, 128),
        local_attention=32,
        classifier_pooling="mean",
        initializer_range=INITIAL_SCALE,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=ends[0][1],
        eos_token_id=ends[1][1],
        cls_token_id=ends[0][1],
        sep_token_id=ends[1][1],
        num_labels=len(HEADS),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ModernBertForSequenceClassification(config), tokenizer


def pretrained_encoder(folder: Path, max_tokens: int, seed: int) -> tuple[nn.Module, object]:
    """An encoder from a folder in transformers format, with new heads; no code of it is run.

    Args:
        folder: of the encoder.
        max_tokens: that it is to read.
        seed: of the heads.

    Raises:
        UserError: it holds no encoder with safetensors weights and a tokenizer, a weight of the encoder
            is missing, or it has fewer positions.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no {WEIGHTS} in it; give the folder of an encoder")
    intact(folder)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
                num_labels=len(HEADS),
                ignore_mismatched_sizes=True,
                **local,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    # transformers, tokenizers and safetensors each raise their own kinds for a damaged file.
    except Exception as error:
        raise UserError(
            f"{folder}: not a readable encoder ({first_line(error)}); fetch it again"
        ) from error
    # transformers only warns about weights that it had to make up; those of the heads it has to.
    made_up = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    body = [key for key in made_up if key.startswith(f"{model.base_model_prefix}.")]
    if lost := sorted(key for key in body if "pooler" not in key):
        raise UserError(f"{folder / WEIGHTS}: has no {lost[0]} of the encoder; fetch it again")
    positions = getattr(model.config, "max_position_embeddings", max_tokens)
    if positions < max_tokens:
        raise UserError(
            f"dialogue.critic.max_tokens: {max_tokens} are more than the {positions} positions of "
            f"{folder}; lower it"
        )
    return model, tokenizer
