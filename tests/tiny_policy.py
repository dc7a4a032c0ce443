"""A tiny response LM, its supervised adapter and a critic: what tests of RL on dialogues run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken

from shielded_recrl.dialogue.corpus.dialogues import SLOT, Dialogues
from shielded_recrl.dialogue.critique.model import Critic, new_encoder
from shielded_recrl.dialogue.pretrain import corpus
from shielded_recrl.dialogue.settings import DialogueCriticSettings, ResponsePromptSettings
from shielded_recrl.explainer.init import new_adapter, save_adapter
from shielded_recrl.explainer.lm import adapter_parameters
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.settings import flags
from tiny_dialogues import TinyDialogues, write_dialogues
from tiny_world import save_model, tiny_llama

PROMPT = ResponsePromptSettings(prompt_tokens=64)
TOKENS = 6


@dataclass(frozen=True)
class TinyPolicy:
    """Paths of what `train` and `evaluate` read."""

    tables: TinyDialogues
    base: Path
    supervised: Path
    critic: Path

    @property
    def flags(self) -> str:
        """As the commands take them."""
        return (
            f"--data {self.tables.data} --emotion {self.tables.emotion} "
            f"--recommendations {self.tables.recommendations} --base {self.base} "
            f"--supervised {self.supervised} --reward-critic {self.critic} "
            f"--response-tokens {TOKENS} --seed 5 {flags(PROMPT)}"
        )


def write_policy(folder: Path) -> TinyPolicy:
    """Dialogues, a random LM, a supervised adapter that changes what it says, an untrained critic."""
    tables = write_dialogues(folder)
    dialogues = Dialogues.load(tables.data)
    taught = dialogues.split("train")
    tokenizer = train_tokenizer(corpus(dialogues, taught), 299)
    tokenizer.add_tokens(AddedToken(SLOT, normalized=False))
    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    base = save_model(tiny_llama(len(tokenizer), **ends), tokenizer, folder / "base")
    model = new_adapter(tiny_llama(len(tokenizer), **ends), 4, 8, seed=1)
    move(model, 0.1)
    supervised = folder / "supervised"
    supervised.mkdir()
    save_adapter(model, supervised)
    settings = DialogueCriticSettings(vocabulary=300, hidden_size=8, layers=1, heads=2)
    texts = [turn.text for dialogue in taught for turn in dialogue.turns]
    encoder, words = new_encoder(texts, settings, seed=2)
    Critic(encoder, words, 2, 48).save(folder / "critic")
    return TinyPolicy(tables, base, supervised, folder / "critic")


@torch.no_grad()
def move(model, by: float) -> None:
    """Give the adapter's B numbers of this size, so that it does something."""
    generator = torch.Generator().manual_seed(3)
    for name, weight in adapter_parameters(model).items():
        if "lora_B" in name:
            weight.copy_(by * torch.randn(weight.shape, generator=generator))
