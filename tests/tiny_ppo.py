"""A random Llama that writes letters, and trainers of it: what the tests of PPO run on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import TCPStore
from transformers import PreTrainedTokenizerFast

from shielded_recrl.explainer.lm import adapter_parameters, last_block_linears, switch_off_dropout
from shielded_recrl.files import write_json
from shielded_recrl.resume import Progress, load_progress, save_progress
from shielded_recrl.rl.distributed import Ranks, join
from shielded_recrl.rl.settings import PPOSettings
from shielded_recrl.rl.trainer import PPO, Prompts
from shielded_recrl.shield.ranking_shield import RankingShield
from tiny_world import prompts, tiny_llama

PAD, EOS, FIRST_LETTER = 0, 1, 2
VOCABULARY = FIRST_LETTER + 26
WIDTH = 32
# Seconds that a rank may take.
LONGEST = 500
# Passes of equal mathematics and another order of sums differ by less.
CLOSE = 1e-5
QUICK = PPOSettings(
    steps=4,
    micro_batch=8,
    epochs=2,
    learning_rate=1e-2,
    value_warmup=0,
    value_epochs=2,
)


@cache
def letters() -> PreTrainedTokenizerFast:
    """A tokenizer of one token a letter."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = [chr(ord("a") + i) for i in range(26)]
    ids = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="a"
    )


def adapted(base=None, *, moved: float = 0.1, last_block: bool = False, activated: bool = False):
    """A PEFT model of rank 4; lora_B is normal of standard deviation `moved`."""
    base = base or tiny_llama(VOCABULARY, WIDTH)
    torch.manual_seed(0)
    model = get_peft_model(
        base,
        LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=0.1,
            target_modules=last_block_linears(base) if last_block else "all-linear",
            task_type="CAUSAL_LM",
            alora_invocation_tokens=[FIRST_LETTER] if activated else None,
        ),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapter_parameters(model).items():
            if "lora_B" in name and moved:
                weight.copy_(moved * torch.randn(weight.shape, generator=generator))
    switch_off_dropout(model)
    return model


def mixed_prompts(count: int):
    """Prompts of 2 to 9 letters, another draw each step; an activated adapter acts on the last 2."""

    def draw(step: int) -> Prompts:
        ids = prompts(count, 2, 9, vocabulary=VOCABULARY, seed=step)
        return Prompts(ids, [2] * count, [None] * count)

    return draw


def early_letters(asked: Sequence[str], texts: Sequence[str], context: Sequence) -> dict:
    """A reward in [0, 1]: the share of letters before n, and nothing for an empty text."""
    shares = [sum(letter < "n" for letter in text) / max(len(text), 1) for text in texts]
    share = torch.tensor(shares)
    return {"early": share, "total": share}


def make_ppo(model=None, *, reward=early_letters, shield=None, seed=0, tokens=6, **changes) -> PPO:
    """A trainer of 8 responses a step, settings changed."""
    own = {name: changes.pop(name) for name in ("probe", "engine", "ranks") if name in changes}
    asked = changes.pop("prompts", None)
    settings = PPOSettings(**QUICK.model_dump() | changes)
    return PPO(
        adapted() if model is None else model,
        letters(),
        asked or mixed_prompts(settings.micro_batch * settings.gradient_accumulation),
        reward,
        settings,
        max_new_tokens=tokens,
        seed=seed,
        shield=shield,
        **own,
    )


def make_shield(penalty: float = 5.0) -> RankingShield:
    """A null-space shield over half of what three prompts span, with a penalty for the rest."""
    read = torch.randn(WIDTH, 10, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    return RankingShield.fit(
        tiny_llama(VOCABULARY, WIDTH),
        prompts(3, 4, 6, vocabulary=VOCABULARY, seed=9),
        lambda hidden: hidden @ read,
        energy=0.5,
        penalty=penalty,
        batch_size=2,
    )


def weights(trainer: PPO) -> dict[str, Tensor]:
    """Copies of all that is trained."""
    return {name: weight.detach().clone() for name, weight in trainer.trained.items()}


def held(act: Callable[[], object]) -> int:
    """Bytes that autograd keeps of what an act computes."""
    sizes = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        act()
    return sum(sizes.values())


def through_disk(trainer: PPO, path: Path) -> Progress:
    """The checkpoint of a trainer, written and read again."""
    save_progress(path, trainer.checkpoint(), "owner")
    return load_progress(path, "owner")


def timeless(row: dict[str, float]) -> dict[str, float]:
    """A row of the log less what the clock and the machine decide."""
    return {
        name: value
        for name, value in row.items()
        if name not in ("seconds", "tokens_per_second", "memory_mb")
    }


def train_on(ranks: Ranks, mini_batches: int, critic: str) -> tuple[PPO, list[dict[str, float]]]:
    """Two steps under a shield with a penalty, by one process or by ranks; and their rows."""
    trainer = make_ppo(
        ranks=ranks,
        shield=make_shield(),
        micro_batch=2,
        gradient_accumulation=4,
        mini_batches=mini_batches,
        critic=critic,
        missing_eos_penalty=0.1,
        kl_target=0.05,
    )
    return trainer, [timeless(trainer.train_step()) for _ in range(2)]


# With as many mini batches as responses, each leaves one rank without a row.
SHARED_RUNS = ((2, "shared"), (8, "separate"))


def start_ranks(count: int, act: Callable[[], None]) -> int:
    """Act as so many ranks, told of each other as torchrun tells them; how many of them failed.

    They are forks of one process that computed nothing yet: what it imported serves all of them.
    """
    told, tell = os.pipe()
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            # Where the other fails, this one would wait for it.
            signal.alarm(LONGEST)
            port = os.read(told, 5).decode()
            os.environ |= {
                "TORCHELASTIC_RUN_ID": "none",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
            }
            act()
            os._exit(0)
        children.append(child)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(tell, f"{store.port:05}".encode() * count)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def train_as_rank(out: Path) -> None:
    """What a rank makes of `SHARED_RUNS`, and what two ranks agree on."""
    torch.set_num_threads(1)
    ranks = join()
    apart = {"a": torch.full((2, 3), ranks.rank + 0.1), "b": torch.tensor([7.0 - ranks.rank])}
    ranks.agree(apart.values())
    save_file(apart, out / f"agreed-{ranks.rank}.safetensors")
    for mini_batches, critic in SHARED_RUNS:
        trainer, rows = train_on(ranks, mini_batches, critic)
        name = f"{mini_batches}-{critic}-{ranks.rank}"
        save_file(weights(trainer), out / f"{name}.safetensors")
        write_json(out / f"{name}.json", rows)
    ranks.leave()


if __name__ == "__main__":
    sys.exit(start_ranks(2, partial(train_as_rank, Path(sys.argv[1]))))
