"""Fine-tune a shared LM with LoRA while the ranking that reads it stays where it is.

shield = RankingShield.fit(model, prompts, head, energy=0.999, weight="score", scope="all")
shield.attach(peft_model)                    # projects lora_A now
shield.hook(optimizer)                       # any torch optimizer
trainer.add_callback(shield.callback())      # or transformers.Trainer, TRL
shield.certify(peft_model, protected, heldout, alpha=0.05)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import causal_lm, hidden_size
from shielded_recrl.shield.adapter import (
    active_adapter,
    guard_gradients,
    last_block,
    lora_a,
    lora_b,
    lora_layers,
    require_plain_lora,
)
from shielded_recrl.shield.bases import Bases, collect_bases
from shielded_recrl.shield.basis import Basis, smaller
from shielded_recrl.shield.constraint import Constraint, Side
from shielded_recrl.shield.digests import weights_sha256
from shielded_recrl.shield.penalty import Head, ScorePenalty
from shielded_recrl.shield.settings import Kind, Scope

Prompts = Sequence[Sequence[int]]
ConstraintKind = Literal["nullspace", "random", "ranker"]


class RankingShield:
    """A constraint on a LoRA adapter, its optimizer hooks and its certificate.

    `kind` is one of
        nullspace: lora_A orthogonal to what its module reads on the protected prompts. Where the
            bases span all of it, protected scores do not move; with an energy cut-off the
            residual is measured.
        random: the same with random subspaces of equal rank, a control.
        ranker: lora_B orthogonal to the directions of the hidden state that the head reads, in
            every module whose output is as wide as that state. It promises nothing: later blocks
            and the last norm mix directions, and in q, k and v of multi-head attention, which are
            as wide, these directions mean nothing.
    """

    def __init__(
        self,
        bases: Bases | None,
        prompts: Prompts,
        head: Head | None,
        *,
        side: Side = "input",
        scope: Scope = "all",
        penalty: float = 0.0,
        seed: int = 0,
        kind: Kind = "nullspace",
        batch_size: int = 32,
    ):
        """
        Args:
            bases: the subspaces; None leaves the penalty alone to act.
            prompts: protected token ids.
            head: hidden states [n, d] -> scores [n, I]; differentiable. Only the penalty and the
                certificate need one.
            side: input: hold lora_A; output: hold lora_B.
            scope: last_block: only the last decoder block may be adapted.
            penalty: weight of the score-matching penalty; 0 leaves it out.
            seed: seed of the order of the prompts in the penalty.
            kind: what the certificate says of the shield.
            batch_size: prompts in one forward pass.

        Raises:
            UserError: a penalty without a head.
        """
        if penalty > 0 and head is None:
            raise UserError("penalty: needs the ranking's head; pass one or set the penalty to 0")
        self.bases, self.prompts, self.head = bases, list(prompts), head
        self.side, self.scope, self.kind = side, scope, kind
        self.penalty_weight, self.seed, self.batch_size = penalty, seed, batch_size
        self.constraint = None if bases is None else Constraint(bases.modules, side)
        self.penalty: ScorePenalty | None = None
        self.step = 0
        self._weights: list[nn.Parameter] | None = None  # acted on; None: not attached
        self._handles: dict[torch.optim.Optimizer, tuple] = {}

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        prompts: Prompts,
        head: Head,
        *,
        kind: ConstraintKind = "nullspace",
        energy: float = 0.999,
        rank: int | None = None,
        weight: Literal["plain", "score"] = "plain",
        scope: Scope = "all",
        penalty: float = 0.0,
        seed: int = 0,
        batch_size: int = 32,
    ) -> RankingShield:
        """Collect the bases of a shield.

        Args:
            model: the base LM in the precision it is served in, or a PEFT model of it.
            prompts: protected token ids; the head reads the state of each one's last token.
            head: hidden states [n, d] -> scores [n, I]; differentiable.
            kind: nullspace, random or ranker.
            energy: share of the input energy the bases capture; 1 asks for the complete span.
            rank: directions of each basis; None takes as many as `energy` asks for.
            weight: energy of an input, plain or weighted by what it does to the scores.
            scope: decoder blocks that will be adapted.
            penalty: weight of the score-matching penalty.
            seed: seed of random bases and of the order of the prompts.
            batch_size: prompts in one forward pass.

        Raises:
            UserError: an unknown kind.
        """
        if kind not in ("nullspace", "random", "ranker"):
            raise UserError(f"kind: {kind!r} is no constraint; use nullspace, random or ranker")
        if kind == "ranker":
            bases = ranker_bases(model, head, energy=energy, rank=rank, scope=scope)
        else:
            bases = collect_bases(
                model,
                prompts,
                energy=energy,
                rank=rank,
                weight=weight,
                scope=scope,
                head=head,
                seed=seed,
                batch_size=batch_size,
            )
        return cls(
            bases.randomised(seed) if kind == "random" else bases,
            prompts,
            head,
            side="output" if kind == "ranker" else "input",
            scope=scope,
            penalty=penalty,
            seed=seed,
            kind=kind,
            batch_size=batch_size,
        )

    def attach(self, model: nn.Module) -> None:
        """Check a PEFT model, project its adapter now, and prepare the penalty.

        4-bit layers are kept in training mode from now on, so that no evaluation in between spoils
        their gradients. Attach again after anything that replaces weights, as a resume does.

        Raises:
            UserError: not plain LoRA, another base LM or precision than the bases', an adapter
                outside the scope, or a module without a basis.
        """
        require_plain_lora(model)
        guard_gradients(model)
        expected = None if self.bases is None else self.bases.about.get("base_sha256")
        if expected is not None and expected != weights_sha256(model):
            raise UserError(
                "bases: collected from other base weights or in another precision; "
                "collect them again from the base LM as it is served"
            )
        if self.scope == "last_block":
            block = last_block(model)
            adapted = lora_layers(model, active_adapter(model))
            if outside := [name for name in adapted if not name.startswith(block)]:
                raise UserError(
                    f"scope: last_block, but the adapter changes {outside[0]} as well; "
                    "pass LoraConfig target_modules=explainer.lm.last_block_linears(model)"
                )
        if self.constraint is not None:
            self.constraint.attach(model)
        if self.penalty_weight > 0:
            self.penalty = ScorePenalty(
                model, self.prompts, self.head, self.penalty_weight, self.seed, self.batch_size
            )
        if self.constraint is not None:
            self._weights = [weight for weight, _ in self.constraint.held.values()]
        else:
            adapter = active_adapter(model)
            weights = lora_a(model, adapter), lora_b(model, adapter)
            self._weights = [weight for side in weights for weight in side.values()]

    def hook(self, optimizer: Any, step: int = 0) -> None:
        """Act on every step of an optimizer from now on.

        Before a step the gradient of the penalty is added (after any clipping of the task's
        gradient) and gradients are projected; after it the weights are.

        Args:
            optimizer: any torch optimizer, or accelerate's wrapper of one; hooking it again
                replaces the earlier hooks.
            step: number of optimizer steps already taken; keys the penalty's minibatches.

        Raises:
            UserError: nothing is attached yet, or the optimizer does not train the weights that
                are held; at a step: a closure, which computes gradients after the hook.
        """
        self._require_attached()
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        if any(w.requires_grad and id(w) not in trained for w in self._weights):
            raise UserError(
                "shield: the optimizer does not train all weights that the shield acts on; make it "
                "from the parameters of the model that was given to attach"
            )
        self.unhook(optimizer)
        self.step = step
        self._handles[optimizer] = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        )

    def unhook(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop acting on an optimizer's steps."""
        for handle in self._handles.pop(optimizer, ()):
            handle.remove()

    def callback(self):
        """A transformers.TrainerCallback that attaches and hooks when training begins.

        A Trainer that resumes has loaded its checkpoint by then, so that the projection is
        repeated and the penalty goes on at the step reached.
        """
        from transformers import TrainerCallback

        shield = self

        class ShieldCallback(TrainerCallback):
            """Attach and hook at the beginning of training."""

            def on_train_begin(self, args, state, control, *, model, optimizer, **_):
                shield.attach(model)
                shield.hook(optimizer, step=state.global_step)

        return ShieldCallback()

    def leakage(self) -> float:
        """The largest ||A Q|| / ||A|| (ranker: ||Q^T B|| / ||B||) over the modules.

        Raises:
            UserError: nothing is attached yet.
        """
        self._require_attached()
        return max(self.constraint.leakage().values()) if self.constraint is not None else 0.0

    def certify(
        self, model: nn.Module, protected: Any, heldout: Any, alpha: float = 0.05, **more: Any
    ) -> dict[str, Any]:
        """The certificate of a trained adapter; see `shield.certificate.certify`.

        Args:
            model: PEFT model.
            protected, heldout: cohorts, or plain lists of prompts.
            alpha: miscoverage of the held-out bounds.
            more: further arguments of `certify`.
        """
        from shielded_recrl.shield.certificate import certify

        return certify(
            model,
            self.head,
            protected,
            heldout,
            kind=self.kind,
            bases=self.bases,
            side=self.side,
            alpha=alpha,
            **more,
        )

    def _require_attached(self) -> None:
        if self._weights is None:
            raise UserError("shield: it holds no model yet; call attach(peft_model) first")

    def _before_step(self, _optimizer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        # The optimizer itself is the first argument.
        if any(given is not None for given in (*args[1:2], kwargs.get("closure"))):
            raise UserError(
                "shield: optimizer.step(closure) computes gradients after the shield acts on them; "
                "call backward first, then step() without a closure"
            )
        if self.penalty is not None:
            with torch.enable_grad():
                self.penalty.loss(self.step).backward()
            grads = [weight.grad for weight in self._weights if weight.grad is not None]
            if not all(bool(torch.isfinite(grad).all()) for grad in grads):
                raise UserError(
                    "shield: the gradient with the penalty is not finite at optimizer step "
                    f"{self.step + 1}; lower shield.penalty or the learning rate"
                )
        if self.constraint is not None:
            self.constraint.project_gradients()

    def _after_step(self) -> None:
        if self.constraint is not None:
            self.constraint.project()
        self.step += 1


def ranker_bases(
    model: nn.Module,
    head: Head,
    *,
    energy: float = 0.999,
    rank: int | None = None,
    scope: Scope = "all",
) -> Bases:
    """The directions of the hidden state that the head reads, for every module of output width d.

    Modules are chosen by that width alone. The attention's output and the MLP's write into the
    residual stream, where these directions mean what they say; q, k and v of multi-head attention
    do not, and holding these takes room and serves nothing.

    The directions are the row space of J = d head / d h at h = 0, [I, d]; for a linear head,
    gamma E W, J is the same everywhere.

    Args:
        model: the base LM, or a PEFT model of it.
        head: hidden states [n, d] -> scores [n, I].
        energy: share of the squared singular values of J; 1 or more: its numerical rank.
        rank: number of directions; None takes as many as `energy` asks for.
        scope: decoder blocks that will be adapted.

    Raises:
        UserError: the head reads no direction at h = 0.
    """
    width, block = hidden_size(model), last_block(model) if scope == "last_block" else ""
    vocabulary = causal_lm(model).get_output_embeddings()
    device = next(causal_lm(model).parameters()).device
    names = [
        name.removesuffix(".base_layer")
        for name, module in causal_lm(model).named_modules()
        if isinstance(module, nn.Linear)
        and module is not vocabulary
        and module.out_features == width
        and ".lora_" not in name
        and name.startswith(block)
    ]
    basis = row_space(head, width, device, energy=energy, rank=rank)
    about = {"base_sha256": weights_sha256(model), "energy": energy, "rank": rank}
    return Bases(groups=dict.fromkeys(names, "hidden"), bases={"hidden": basis}, about=about)


def row_space(
    head: Head, width: int, device: torch.device, *, energy: float, rank: int | None = None
) -> Basis:
    """The leading right singular directions of the head's Jacobian at h = 0.

    Raises:
        UserError: the Jacobian is zero, so that it has no direction.
    """
    origin = torch.zeros(width, device=device)
    jacobian: Tensor = torch.func.jacrev(lambda h: head(h[None])[0], chunk_size=256)(origin)
    jacobian = jacobian.detach().double().cpu()
    if not jacobian.any():
        raise UserError(
            "ranker: no score of the head changes with the hidden state, so there is no direction "
            "to hold; give the head with gamma above 0, or one whose gradient at h = 0 is not 0"
        )
    values, vectors = torch.linalg.eigh(jacobian.T @ jacobian)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    captured = values.cumsum(0) / values.sum()
    if rank is None and energy >= 1:
        rank = int((values > values[0] * (width * torch.finfo(torch.float32).eps) ** 2).sum())
    elif rank is None:
        rank = int((captured < energy).sum()) + 1
    rank = min(rank, width)
    return smaller(vectors, rank, float(captured[rank - 1]))
