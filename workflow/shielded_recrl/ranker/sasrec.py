"""SASRec (Kang and McAuley 2018), with the pre-norm blocks of today's transformers.

In: item sequences. Out: a user state for each of them, and an item embedding for each item; the
score is their inner product. Sequences are padded on the right with item 0: under causal attention
no position sees what comes after it, so that padding needs no mask.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from shielded_recrl.errors import UserError
from shielded_recrl.files import intact, sealed
from shielded_recrl.ranker.batches import pad
from shielded_recrl.ranker.settings import RankerSettings

INITIAL_STD = 0.02


class Dropout(nn.Module):
    """Dropout whose mask costs a byte of randomness an element on a CPU: a third of torch's time.

    There p is rounded to a multiple of 1/256; kept elements are divided by the share that is kept.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.is_cuda:
            return F.dropout(x, self.p)
        dropped = round(256 * self.p)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        lots = words.view(torch.uint8)[: x.numel()].view(x.shape)
        return x * (lots >= dropped).to(x.dtype).mul_(256 / (256 - dropped))


class Block(nn.Module):
    """Pre-norm transformer block: causal self-attention, then a position-wise network."""

    def __init__(self, settings: RankerSettings) -> None:
        super().__init__()
        dim, hidden = settings.dim, settings.dim * settings.feedforward
        self.heads = settings.heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.network_norm = nn.LayerNorm(dim)
        self.network = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] to [B, L, d]; position t reads positions up to t."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        )
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.output(read.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.network(self.network_norm(x)))


class SASRec(nn.Module):
    """Self-attentive sequential recommender; input and output item embeddings are one matrix."""

    def __init__(self, n_items: int, settings: RankerSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.max_length = settings.max_length
        # Small embeddings let scores grow from nothing; scaled up, they are inputs of common size.
        self.scale = dim**0.5
        self.items = nn.Embedding(n_items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(settings.max_length, dim)
        self.dropout = Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(dim)
        with torch.no_grad():
            self.items.weight[1:].normal_(std=INITIAL_STD)
            self.positions.weight.normal_(std=INITIAL_STD * self.scale)

    def forward(self, items: Tensor) -> Tensor:
        """Item ids [B, L], L <= max_length, to the state after each of them [B, L, d]."""
        positions = self.positions.weight[: items.shape[1]]
        x = self.dropout(self.scale * self.items(items) + positions)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """States [..., d] to scores of items 1..n_items [..., n_items]; padding has none."""
        return states @ self.items.weight[1:].T


@torch.no_grad()
def user_states(model: SASRec, sequences: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """State after the last item of each sequence, float32 [len(sequences), d]; zeros if empty.

    Leaves the model in the mode (training or not) it came in.
    """
    device = model.items.weight.device
    training = model.training
    model.eval()
    states = np.zeros((len(sequences), model.items.embedding_dim), dtype=np.float32)
    filled = [i for i, row in enumerate(sequences) if len(row)]
    filled.sort(key=lambda i: len(sequences[i]))
    for start in range(0, len(filled), batch_size):
        some = filled[start : start + batch_size]
        items = pad([sequences[i] for i in some], model.max_length).to(device)
        last = (items > 0).sum(dim=1) - 1
        states[some] = model(items)[torch.arange(len(some), device=device), last].cpu().numpy()
    model.train(training)
    return states


@dataclass(frozen=True)
class Checkpoint:
    """What the metadata of a model file says; `train_sha256` is the digest of train.parquet."""

    settings: RankerSettings
    n_items: int
    train_sha256: str
    seed: int
    best_epoch: int


def save(path: Path, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Write weights and checkpoint as one safetensors file."""
    about = asdict(checkpoint) | {"settings": checkpoint.settings.model_dump()}
    # One key: safetensors writes several in an order that differs from run to run.
    metadata = {"sasrec": json.dumps(about, sort_keys=True)}
    with sealed(path) as partial:
        save_file(weights, partial, metadata)


def load(path: Path) -> tuple[SASRec, Checkpoint]:
    """Read a model file; the model is on the CPU, in evaluation mode.

    Raises:
        UserError: the file is missing, damaged, or not of this kind.
    """
    path = Path(path)
    again = "make it with `python -m shielded_recrl.ranker train`"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {again}")
    try:
        with safe_open(intact(path), "pt") as file:
            about = json.loads((file.metadata() or {})["sasrec"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = RankerSettings(**about.pop("settings"))
        checkpoint = Checkpoint(settings=settings, **about)
        # The memory is that of the file, whatever size it claims.
        with torch.device("meta"):
            model = SASRec(checkpoint.n_items, settings)
        model.load_state_dict(weights, assign=True)
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError("not all weights are numbers")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); {again}") from error
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a checkpoint of this ranker; {again}") from error
    return model.eval(), checkpoint
