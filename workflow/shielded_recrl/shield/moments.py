"""Second moments of the inputs of a base LM's linear layers, and their leading eigenvectors.

    C = sum_t w_t x_t x_t^T,

w_t = 1, or w_t = sum ||d score / d y_t||^2 over the modules y = f(x) that share the input: the
energy of an input, weighted by what a change of the output there does to the scores.

Modules fed the same tensor share a group (q, k, v; gate, up). A module whose output influences
h at the last token only through that token itself, as q, o and the MLP of the last block, is
grouped apart, and only its inputs there count.

Floating-point sums depend on their order, so C is summed by a fixed tree over chunks of prompts:
shards that collect a part each give the very bits of one job that collects all; see `shards`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import blocks
from shielded_recrl.shards import WHOLE, Shard, leaves, pairwise
from shielded_recrl.shield.basis import Basis, smaller

Head = Callable[[Tensor], Tensor]
Prompts = Sequence[Sequence[int]]

# Second moments are squares: fp32 resolves directions down to 3e-4 of the largest, float64 below
# the rounding of fp32 inputs. Above this width only a complete span is worth twice the memory.
DOUBLE_WIDTH = 8192
# Widest moment that is decomposed in full; above it, randomised subspace iteration.
EIGH_WIDTH = 2048
OVERSAMPLING = 16
ITERATIONS = 4
# Prompts whose gradients tell which modules matter at the last token only.
PROBED_PROMPTS = 4
# Neighbouring prompts whose inputs are added one after the other.
CHUNK = 64


def second_moments(
    model: nn.Module,
    prompts: Prompts,
    indices: Iterable[int],
    *,
    head: Head | None = None,
    seed: int = 0,
    batch_size: int = 32,
    probes: int = 4,
    complete: bool = False,
    shard: Shard = WHOLE,
) -> tuple[dict[str, Moment], dict[str, str]]:
    """Second moments of the inputs of the linear layers of some decoder blocks.

    Takes a model whose parameters want no gradient.

    Args:
        model: causal LM.
        prompts: token ids, those of all shards.
        indices: of neighbouring decoder blocks.
        head: scores whose gradient weights the inputs; None weights all alike.
        seed, probes: of the Hutchinson estimate.
        batch_size: prompts in a forward pass.
        complete: whether the complete span is wanted.
        shard: whose chunks of the prompts are added.

    Returns:
        moments: group -> moment, on the CPU.
        groups: module name in the base LM -> group.
    """
    window = Window(model, indices)
    longest = sorted(prompts, key=len, reverse=True)[:PROBED_PROMPTS]
    groups, last_only = window.groups(Batch.of(longest, window.device), seed)
    tokens = sum(map(len, prompts))

    def empty() -> dict[str, Moment]:
        return {
            group: Moment(
                window.linear[group].in_features,
                len(prompts) if group in last_only else tokens,
                complete,
            )
            for group in dict.fromkeys(groups.values())
        }

    def collect(own: range) -> dict[str, Tensor] | None:
        moments = empty()
        for start in range(own.start, own.stop, batch_size):
            places = range(start, min(start + batch_size, own.stop))
            batch = Batch.of([prompts[place] for place in places], window.device)
            if head is None:
                window.add_inputs(batch, moments, last_only)
            else:
                window.add_weighted(batch, moments, groups, last_only, head, probes, seed, places)
        # Sums wait for others in main memory: a GPU holds one set of moments at a time.
        return {group: moment.held().cpu() for group, moment in moments.items()} if own else None

    def join(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        return {group: moments[group].joined(left[group], right[group]) for group in left}

    moments = empty()
    held = pairwise(map(collect, leaves(len(prompts), CHUNK, shard)), join)
    for group, tensor in (held or {}).items():
        moments[group].hold(tensor)
    return moments, groups


class Moment:
    """C = sum_t x_t x_t^T [d, d], or, of few rows, the rows themselves: smaller and more exact."""

    def __init__(self, width: int, rows: int, complete: bool = False):
        """
        Args:
            width: d.
            rows: number of rows that will be added, those of all shards.
            complete: whether the complete span is wanted.
        """
        self.width, self.count = width, rows
        # A full decomposition of many rows costs more than a randomised one of their sum.
        few = 2 * rows <= width and (complete or rows <= EIGH_WIDTH)
        self.rows: list[Tensor] | None = [] if few else None
        double = self.rows is not None or complete or width <= DOUBLE_WIDTH
        self.dtype = torch.float64 if double else torch.float32
        self.matrix: Tensor | None = None

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Add rows [n, d], weighted by [n]."""
        rows = rows.to(self.dtype)
        if weights is not None:
            rows = rows * weights.to(self.dtype).sqrt()[:, None]
        if self.rows is not None:
            self.rows.append(rows)
            return
        if self.matrix is None:
            self.matrix = rows.new_zeros(self.width, self.width)
        self.matrix.addmm_(rows.T, rows)

    def held(self) -> Tensor:
        """What was added, as one tensor: the rows, or C."""
        return self.matrix if self.rows is None else torch.cat(self.rows)

    def hold(self, tensor: Tensor) -> None:
        """Take over what moments of the same inputs `held` together, in the place of one's own."""
        if self.rows is None:
            self.matrix = tensor
        else:
            self.rows = [tensor]

    def joined(self, left: Tensor, right: Tensor) -> Tensor:
        """What two such moments `held`, as one tensor; `left` may be changed."""
        return left.add_(right) if self.rows is None else torch.cat([left, right])

    def finite(self) -> bool:
        """Whether all that was added is finite: what is not shows in its squares."""
        parts = [self.matrix.diagonal()] if self.rows is None else self.rows
        return all(bool(part.isfinite().all()) for part in parts)

    def full(self) -> Tensor:
        """C [d, d]."""
        if self.rows is None:
            return self.matrix
        rows = torch.cat(self.rows)
        return rows.T @ rows

    def leading(
        self, energy: float, rank: int | None, seed: int, device: torch.device | str = "cpu"
    ) -> Basis:
        """The leading eigenvectors of C, found on a device; see `collect_bases`."""
        held = self.held().to(device)
        if self.rows is not None:
            _, singular, vectors = torch.linalg.svd(held, full_matrices=False)
            return _cut(singular.square(), vectors.T, energy, rank)
        return leading_basis(held, energy, rank, seed)


def leading_basis(
    moment: Tensor, energy: float, rank: int | None = None, seed: int = 0, exact: bool | None = None
) -> Basis:
    """The leading eigenvectors of a second moment.

    Args:
        moment: symmetric positive semi-definite [d, d].
        energy: share of the trace to capture, in (0, 1]; 1 keeps the numerical rank.
        rank: directions, at most the numerical rank; overrides `energy`.
        seed: seed of the randomised decomposition.
        exact: decompose in full; by default up to a width of `EIGH_WIDTH`, and for a complete
            span. Otherwise subspace iteration from a random start (Halko et al. 2011, alg. 4.4),
            of a dimension that doubles until it captures what is asked for.
    """
    width, complete = len(moment), rank is None and energy >= 1
    if exact is None:
        exact = width <= EIGH_WIDTH or complete
    if not exact:
        generator = torch.Generator().manual_seed(seed)
        trace = torch.trace(moment)
        size, subspace = min(rank or width // 32, width) + OVERSAMPLING, moment[:, :0]
        while 2 * size <= width:
            fresh = torch.randn(width, size - subspace.shape[1], generator=generator)
            subspace = torch.cat([subspace, fresh.to(moment)], 1)
            for _ in range(ITERATIONS):
                subspace = torch.linalg.qr(moment @ subspace)[0]
            values, rotation = torch.linalg.eigh(subspace.T @ (moment @ subspace))
            if rank is not None or values[OVERSAMPLING:].sum() >= energy * trace:
                vectors = subspace @ rotation
                return _cut(values.flip(0), vectors.flip(1), energy, rank, float(trace))
            size *= 2
    values, vectors = torch.linalg.eigh(moment)
    return _cut(values.flip(0), vectors.flip(1), energy, rank)


def _cut(
    values: Tensor, vectors: Tensor, energy: float, rank: int | None, trace: float | None = None
) -> Basis:
    """The basis of as many eigenvectors [d, n] as asked for, eigenvalues [n] falling."""
    values = values.clamp(min=0).double()
    trace = float(values.sum()) if trace is None else trace
    if trace <= 0:
        return Basis(vectors[:, :0].float().cpu())
    # Eigenvalues are squares. What is left out of a float64 sum is the rounding of fp32 inputs; of
    # an fp32 sum, no more than its own.
    eps = torch.finfo(torch.float32).eps
    tolerance = len(vectors) * eps**2 if vectors.dtype == torch.float64 else eps
    numerical = int((values > values[0] * tolerance).sum())
    captured = values.cumsum(0) / trace
    if rank is None:
        rank = numerical if energy >= 1 else int((captured < energy).sum()) + 1
    rank = min(rank, numerical)
    return smaller(vectors.cpu(), rank, min(float(captured[rank - 1]), 1.0))


@dataclass(frozen=True)
class Batch:
    """Right-padded prompts: causal attention never looks at the padding behind them."""

    ids: Tensor  # [n, t]
    mask: Tensor  # bool [n, t]
    last: Tensor  # [n]

    @classmethod
    def of(cls, prompts: Prompts, device: torch.device) -> Batch:
        longest = max(map(len, prompts))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in prompts])
        lengths = torch.tensor([len(row) for row in prompts])
        mask = torch.arange(longest)[None, :] < lengths[:, None]
        return cls(ids.to(device), mask.to(device), (lengths - 1).to(device))

    def at_last(self, rows: Tensor) -> Tensor:
        """[n, t, ...] -> [n, ...] at the last token of each prompt."""
        return rows[torch.arange(len(rows), device=rows.device), self.last.to(rows.device)]

    def select(self, rows: Tensor, last_only: bool) -> Tensor:
        """[n, t, ...] -> [m, ...] at the last tokens, or at all but padding."""
        return self.at_last(rows) if last_only else rows[self.mask.to(rows.device)]


class _Done(Exception):
    """All blocks of interest have run."""


class Window:
    """Neighbouring decoder blocks, and the inputs and output gradients of their linear layers."""

    def __init__(self, model: nn.Module, indices: Iterable[int]):
        from shielded_recrl.explainer.lm import trunk

        named = blocks(model)
        names, indices = list(named), list(indices)
        self.trunk = trunk(model)
        self.device = next(self.trunk.parameters()).device
        self.first = named[names[indices[0]]]
        self.next = named[names[indices[-1] + 1]] if indices[-1] + 1 < len(names) else None
        self.linear = {
            name: module
            for index in indices
            for name, module in _linear_layers(names[index], named[names[index]])
        }

    def groups(self, batch: Batch, seed: int) -> tuple[dict[str, str], set[str]]:
        """Which modules share an input, and the groups that matter at the last token only.

        There the gradient of a random linear functional of h with respect to the module's output
        is exactly zero at all other tokens.
        """
        inputs, outputs, hidden = self._record(batch)
        functional = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed))
        gradients = _gradients(hidden, outputs, functional)
        others = batch.mask.clone()
        others[torch.arange(len(others)), batch.last] = False
        groups: dict[str, str] = {}
        kinds: dict[tuple, str] = {}
        last_only = set()
        for name, x in inputs.items():
            alone = not gradients[name][others.to(x.device)].any()
            key = (x.data_ptr(), x.shape, x.stride(), alone)
            groups[name] = kinds.setdefault(key, name)
            if alone:
                last_only.add(groups[name])
        return groups, last_only

    @torch.no_grad()
    def add_inputs(self, batch: Batch, moments: Mapping[str, Moment], last_only: set[str]) -> None:
        """Add a batch's inputs to the moments as they come, and stop behind the last block."""

        def stop(*_: Any) -> None:
            raise _Done

        def observe(group: str) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                rows = token_rows(group, arguments, batch)
                moments[group].add(batch.select(rows, group in last_only))

            return hook

        with ExitStack() as hooks:
            for group in moments:
                hooks.enter_context(self.linear[group].register_forward_pre_hook(observe(group)))
            if self.next is not None:
                hooks.enter_context(self.next.register_forward_pre_hook(stop))
            with suppress(_Done):
                self.trunk(input_ids=batch.ids, use_cache=False)

    def add_weighted(
        self,
        batch: Batch,
        moments: Mapping[str, Moment],
        groups: Mapping[str, str],
        last_only: set[str],
        head: Head,
        probes: int,
        seed: int,
        places: range,
    ) -> None:
        """Add a batch's inputs, weighted by an unbiased estimate of ||d score / d y_t||^2.

        For v ~ N(0, I), E ||d <v, score> / d y_t||^2 = ||d score / d y_t||_F^2 (Hutchinson 1989).
        v is keyed by a prompt's place among all: the same for every window, batch size and shard.
        """
        inputs, outputs, hidden = self._record(batch)
        with torch.enable_grad():
            scores = head(hidden)
        directions = torch.stack(
            [probe_directions(seed, place, probes, scores.shape[1]) for place in places], 1
        )
        weights = {group: torch.zeros(batch.ids.shape, device=self.device) for group in moments}
        for direction in directions:
            gradients = _gradients(scores, outputs, direction)
            for name, gradient in gradients.items():
                squares = gradient.float().square().sum(-1) / probes
                weights[groups[name]] += squares.to(self.device)
        for group, moment in moments.items():
            rows, weight = inputs[group], weights[group].to(inputs[group].device)
            moment.add(
                batch.select(rows, group in last_only), batch.select(weight, group in last_only)
            )

    @torch.enable_grad()
    def _record(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """One forward pass with a graph that begins at the first block.

        Returns:
            Inputs [n, t, d_in] and outputs [n, t, d_out] by module, in the order they ran, and h
            [n, d] in fp32.
        """
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def begin(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, *others = arguments
            return (hidden.detach().requires_grad_(), *others)

        def observe(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                if name in inputs:
                    raise UserError(
                        f"bases: {name} runs twice in a forward pass; leave it out of the adapter"
                    )
                inputs[name] = token_rows(name, arguments, batch).detach()
                outputs[name] = output

            return hook

        with ExitStack() as hooks:
            hooks.enter_context(self.first.register_forward_pre_hook(begin))
            for name, module in self.linear.items():
                hooks.enter_context(module.register_forward_hook(observe(name)))
            states = self.trunk(input_ids=batch.ids, use_cache=False).last_hidden_state
        return inputs, outputs, batch.at_last(states).float()


def probe_directions(seed: int, place: int, probes: int, items: int) -> Tensor:
    """Standard normal directions [probes, I] for the prompt at a place."""
    rng = np.random.default_rng([seed, place])
    return torch.from_numpy(rng.standard_normal((probes, items), dtype=np.float32))


def _gradients(
    value: Tensor, outputs: Mapping[str, Tensor], direction: Tensor
) -> dict[str, Tensor]:
    """Gradient of <direction, value> with respect to each output; the graph is kept."""
    gradients = torch.autograd.grad(
        value,
        list(outputs.values()),
        direction.to(value),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(outputs, gradients, strict=True))


def belongs_to_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _linear_layers(prefix: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers of a decoder block, by their name in the base LM."""
    for name, module in block.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear) and not belongs_to_adapter(name):
            yield name.removesuffix(".base_layer"), module


def token_rows(name: str, arguments: tuple[Tensor, ...], batch: Batch) -> Tensor:
    """A module's input as [n, t, d_in]."""
    (x,) = arguments
    if x.shape[:-1].numel() != batch.ids.numel():
        raise UserError(f"bases: {name} does not read one row a token; leave it out of the adapter")
    return x.reshape(*batch.ids.shape, -1)
