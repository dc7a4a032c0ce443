"""Certificate of a trained adapter: what its shield promises, and what was measured.

In: a model with its adapter, the ranking head, protected and held-out users. Out: a JSON document
with hashes of everything it speaks of, drift on both cohorts, and a verdict for each. Held-out
users are in no basis, read-out or rollout; what trained the LM and the ranker may hold them.

Scores are served ones, with the adapter against without it: of the kind separate with the adapter
off, of the kind activated out of one prefill that runs on into the request.

On protected users, and wherever the ranking never reads the adapter, scores are compared directly.
For users outside the cohorts two distribution-free statements are made, valid if they are
exchangeable with the held-out users and nothing was tuned on these: a split-conformal bound on a
user's largest |score change| (Lei et al. 2018), and the Clopper-Pearson interval (1934) of the
share of users whose top 10 changes. Bounds by operator norms are left out: they say next to
nothing about the drift that occurs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import (
    blocks,
    causal_lm,
    frozen,
    hidden_size,
    is_activated,
    trunk,
)
from shielded_recrl.shield.adapter import active_adapter, lora_a, lora_b, lora_layers
from shielded_recrl.shield.bases import Bases
from shielded_recrl.shield.digests import (
    precision_of,
    prompts_sha256,
    tensors_sha256,
    weights_sha256,
)
from shielded_recrl.shield.drift import drift, largest_changes
from shielded_recrl.shield.moments import (
    PROBED_PROMPTS,
    Batch,
    Head,
    Window,
    token_rows,
)
from shielded_recrl.shield.serving import served_states

# A null space is exact on users whose scores moved by no more than this share of their standard
# deviation over items, and whose tokens its bases miss by no more than this share of their length.
SCORE_TOLERANCE = 1e-5
SPAN_TOLERANCE = 1e-3

RULE = (
    "exact: the ranking reads the LM without its adapter (kinds separate and activated) and all "
    "measured scores are bit-identical; or, on protected users, kind nullspace, not merged, every "
    f"basis misses at most {SPAN_TOLERANCE:g} of any protected input (worst-token residual) and no "
    f"score moved by more than {SCORE_TOLERANCE:g} of the scores' standard deviation over items. "
    "Everything else is approximate: measured, not promised."
)


@dataclass(frozen=True)
class Cohort:
    """Users as the ranking sees them; their scores are offset + head(h).

    Attributes:
        prompts: token ids of each user's prefix, n of them.
        offset: the part of the scores that does not read the LM [n, I]; None: 0.
        seen: boolean [n, I], items that are no candidates; None: every item is one.
        relevant: boolean [n, I], items to be found; None: NDCG and HR are not measured.
    """

    prompts: Sequence[Sequence[int]]
    offset: np.ndarray | None = None
    seen: np.ndarray | None = None
    relevant: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.prompts) or not all(map(len, self.prompts)):
            raise UserError("cohort: expected at least one prompt, and none that is empty")
        for name in ("offset", "seen", "relevant"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.prompts):
                raise UserError(
                    f"cohort: {len(self.prompts)} prompts, but {name} has {len(array)} rows; "
                    "give one row a prompt"
                )

    def __len__(self) -> int:
        return len(self.prompts)


def cohort_scores(model: nn.Module, head: Head, cohort: Cohort, batch_size: int = 64) -> np.ndarray:
    """Served scores [n, I], float64, with the adapter as it is: on or off; see `served_states`.

    Raises:
        UserError: the offset has another shape than the head's scores, or a score is not finite.
    """
    hidden = served_states(model, cohort.prompts, batch_size)
    device = next(trunk(model).parameters()).device
    with torch.no_grad():
        parts = [head(batch.to(device)).double().cpu() for batch in hidden.split(batch_size)]
    scores = torch.cat(parts).numpy()
    for name in ("offset", "seen", "relevant"):
        array = getattr(cohort, name)
        if array is not None and array.shape != scores.shape:
            raise UserError(
                f"cohort: {name} has shape {array.shape}, but the head scores {scores.shape}; "
                "both must be [users, items]"
            )
    if not np.isfinite(scores).all():
        raise UserError("cohort: a score is not finite; serve the model in a wider precision")
    return scores if cohort.offset is None else scores + cohort.offset


def certify(
    model: nn.Module,
    head: Head,
    protected: Cohort | Sequence[Sequence[int]],
    heldout: Cohort | Sequence[Sequence[int]],
    *,
    kind: str,
    bases: Bases | None = None,
    side: str = "input",
    alpha: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
    merged: str | None = None,
    reference: tuple[np.ndarray, np.ndarray] | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Certify an adapter.

    Args:
        model: PEFT model, its adapter not switched off; or a merged model, with `reference`.
        head: hidden states [n, d] -> scores [n, I].
        protected, heldout: the cohorts, or their prompts alone.
        kind: kind of the shield; `separate` ranks with the adapter off.
        bases: the shield's bases.
        side: whether the bases hold `input` directions (against lora_A) or `output` ones (lora_B).
        alpha: error rate of the statements on users outside the cohorts, in (0, 1).
        resamples: bootstrap resamples of the NDCG interval.
        seed: seed of the bootstrap.
        merged: precision the adapter was merged into; None: it is not merged.
        reference: scores [n, I] of protected and held-out users without the adapter; None, and
            always for an activated adapter: the model's own, with the adapter off.
        batch_size: prompts in a forward pass.

    Returns:
        kind, side, merged, precision, hashes, shield (what is known about the bases), modules,
        modules_without_room (how many bases span the whole width, so that nothing is trained),
        prompts_with_invocation (prompts in which PEFT alone would wake an activated adapter),
        protected, heldout, verdict, rule and sentence. Everything fits into JSON without NaN.

    Raises:
        UserError: alpha is out of range, a cohort does not fit the head, no adapter and no
            reference is given, or the kind does not fit the adapter.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha: {alpha} is no error rate; choose one between 0 and 1, as 0.05")
    adapted = hasattr(model, "get_base_model")
    _check_kind(model, kind, merged, adapted, reference)
    cohorts = {
        name: cohort if isinstance(cohort, Cohort) else Cohort(cohort)
        for name, cohort in (("protected", protected), ("heldout", heldout))
    }

    # First: it refuses weights that bitsandbytes repacked, whose scores are off.
    base = weights_sha256(model)

    def scores(cohort: Cohort) -> np.ndarray:
        return cohort_scores(model, head, cohort, batch_size)

    def adapter_off():
        return model.disable_adapter() if adapted else nullcontext()

    with frozen(model):
        with adapter_off():
            # Bits compare in equal shapes alone: an activated adapter has its own prefill.
            own = reference is None or is_activated(model)
            before = tuple(map(scores, cohorts.values())) if own else reference
            residuals = {}
            if bases is not None and side == "input" and adapted:
                residuals = worst_residuals(
                    model, bases, cohorts["protected"].prompts, batch_size=batch_size
                )
        with adapter_off() if kind == "separate" else nullcontext():
            after = tuple(map(scores, cohorts.values()))

    measured = {
        name: {
            **drift(
                old, new, seen=cohort.seen, relevant=cohort.relevant, resamples=resamples, seed=seed
            ),
            "score_std": _score_std(old, cohort.seen),
            "bit_identical": bool(np.array_equal(old, new)),
        }
        for (name, cohort), old, new in zip(cohorts.items(), before, after, strict=True)
    }
    largest = largest_changes(before[1], after[1], cohorts["heldout"].seen)
    measured["heldout"] |= _statements(largest, measured["heldout"]["top10_identical"], alpha)

    modules = module_report(model, bases, side, residuals) if adapted and bases else {}
    verdict = _verdict(kind, merged, measured, modules)
    awake = None
    if is_activated(model):
        invocation = model.active_peft_config.alora_invocation_tokens
        awake = sum(_contains(row, invocation) for c in cohorts.values() for row in c.prompts)
    return {
        "kind": kind,
        "side": side,
        "merged": merged,
        "precision": merged or precision_of(causal_lm(model)),
        "hashes": {
            "base": base,
            "quantisation": _quantisation_sha256(model),
            "adapter": adapter_sha256(model) if adapted else None,
            "bases": bases_sha256(bases) if bases else None,
            "head": head_sha256(head, hidden_size(model)),
            **{f"{name}_prompts": prompts_sha256(c.prompts) for name, c in cohorts.items()},
        },
        "shield": _finite(bases.about) if bases else None,
        "modules": modules,
        "modules_without_room": sum(
            m["k"] is not None and m["k"] == m["d"] for m in modules.values()
        ),
        "prompts_with_invocation": awake,
        **measured,
        "verdict": verdict,
        "rule": RULE,
        "sentence": _sentence(kind, merged, measured, verdict, awake),
    }


def conformal_quantile(values: np.ndarray, alpha: float) -> float | None:
    """Split-conformal quantile: the ceil((n + 1)(1 - alpha))-th smallest of n values.

    A further value, exchangeable with these, is no larger with probability at least 1 - alpha (Lei
    et al. 2018, section 2). None where n < 1 / alpha - 1: no finite bound exists.
    """
    # Less a rounding error: (n + 1)(1 - alpha) may come out a hair above a whole number.
    rank = math.ceil((len(values) + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(values)[rank - 1]) if rank <= len(values) else None


def clopper_pearson(events: int, n: int, alpha: float) -> tuple[float, float]:
    """Two-sided exact interval at confidence 1 - alpha of the probability of `events` out of n."""
    interval = binomtest(events, n).proportion_ci(confidence_level=1 - alpha, method="exact")
    return float(interval.low), float(interval.high)


def worst_residuals(
    model: nn.Module, bases: Bases, prompts: Sequence[Sequence[int]], batch_size: int = 64
) -> dict[str, float]:
    """Per module of `bases`, the largest ||x - Q Q^T x|| / ||x|| over the tokens of the prompts.

    Inputs come from the model as it is, its weights frozen: switch an adapter off before. Where
    only a module's input at the read-out token reaches the ranking (q, o and the MLP of the last
    block), it is judged there alone.

    Raises:
        UserError: the bases were made for another model.
    """
    lm, device = causal_lm(model), next(trunk(model).parameters()).device
    modules = dict(lm.named_modules())
    if absent := sorted(bases.groups.keys() - modules.keys()):
        raise UserError(
            f"bases: the LM has no module {absent[0]}; collect the bases again with this base LM"
        )
    last_only = read_out_modules(model, prompts)
    # One module stands for all of its group that count the same tokens.
    readers = {(group, name in last_only): name for name, group in bases.groups.items()}
    worst = dict.fromkeys(readers, 0.0)

    def observe(reader: tuple[str, bool]):
        basis = bases.bases[reader[0]].to(device)

        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            rows = batch.select(token_rows(readers[reader], arguments, batch), reader[1]).float()
            norms = rows.norm(dim=1)
            share = torch.where(norms > 0, basis.outside(rows).norm(dim=1) / norms, 0.0)
            worst[reader] = max(worst[reader], float(share.max()))

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for reader, name in readers.items():
            hooks.enter_context(modules[name].register_forward_pre_hook(observe(reader)))
        for start in range(0, len(prompts), batch_size):
            batch = Batch.of(prompts[start : start + batch_size], device)
            trunk(model)(input_ids=batch.ids, use_cache=False)
    return {name: worst[group, name in last_only] for name, group in bases.groups.items()}


def read_out_modules(model: nn.Module, prompts: Sequence[Sequence[int]]) -> set[str]:
    """Modules whose input reaches the ranking from the read-out token alone.

    All are in the last block: what an earlier one writes at any token is read by the next block's
    attention.
    """
    window = Window(model, [len(blocks(model)) - 1])
    longest = sorted(prompts, key=len, reverse=True)[:PROBED_PROMPTS]
    groups, last_only = window.groups(Batch.of(longest, window.device), seed=0)
    return {name for name, group in groups.items() if group in last_only}


def module_report(
    model: nn.Module, bases: Bases, side: str, residuals: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Per adapted module: k, d, captured energy, worst residual and leakage.

    Leakage is ||A Q|| / ||A|| on the input side and ||Q^T B|| / ||B|| on the output side. All are
    None for a module without a basis.
    """
    report = {}
    adapter = active_adapter(model)
    weights = lora_a(model, adapter) if side == "input" else lora_b(model, adapter)
    for name, weight in weights.items():
        basis = bases.modules.get(name)
        if basis is None:
            report[name] = dict.fromkeys(("k", "d", "energy", "residual", "leakage"))
            continue
        rows = weight.detach() if side == "input" else weight.detach().T
        report[name] = {
            "k": basis.rank,
            "d": basis.width,
            "energy": basis.energy,
            "residual": residuals.get(name),
            "leakage": basis.to(rows.device).leakage(rows),
        }
    return _finite(report)


def adapter_sha256(model: nn.Module) -> str:
    """Digest of everything the active adapter trains, and of the LoRA scales alpha / r."""
    from peft import get_peft_model_state_dict

    name = active_adapter(model)
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    layers = lora_layers(model, name)
    return _digest(weights, {module: layer.scaling[name] for module, layer in layers.items()})


def bases_sha256(bases: Bases) -> str:
    """Digest of the subspaces and of which module has which."""
    kept = {name: basis.complement for name, basis in bases.bases.items()}
    tensors = {name: basis.matrix for name, basis in bases.bases.items()}
    return _digest(tensors, [kept, dict(bases.groups)])


def head_sha256(head: Head, width: int) -> str:
    """Digest of a linear head's tensors; of another head's scores on a fixed probe [16, width]."""
    names = ("items", "weight", "gamma")
    if all(hasattr(head, name) for name in names):
        return _digest({name: torch.as_tensor(getattr(head, name)) for name in names})
    probe = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    places = head.parameters() if isinstance(head, nn.Module) else iter(())
    weight = next(places, probe)
    with torch.no_grad():
        return _digest({"scores": head(probe.to(weight.device))})


def _check_kind(
    model: nn.Module, kind: str, merged: str | None, adapted: bool, reference: object
) -> None:
    if not adapted and reference is None:
        raise UserError(
            "certify: the model has no adapter to switch off; give the scores without it as "
            "`reference`"
        )
    if merged is not None and kind in ("separate", "activated"):
        raise UserError(
            f"certify: an adapter of kind {kind} cannot be merged, since the ranking must not "
            "read it; serve it unmerged"
        )
    if adapted and kind == "activated" and not is_activated(model):
        raise UserError(
            "certify: the adapter is no activated LoRA and would act on the prefix; set "
            "alora_invocation_tokens in its LoraConfig and train it again"
        )


def _statements(largest: np.ndarray, identical: float, alpha: float) -> dict[str, Any]:
    """What held-out users say about users outside the cohorts."""
    n = len(largest)
    changed = n - round(identical * n)
    quantile = conformal_quantile(largest, alpha)
    low, high = clopper_pearson(changed, n, alpha)
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    return {
        "conformal": {
            "alpha": alpha,
            "n": n,
            "quantile": quantile,
            "note": f"{n} held-out users are too few for alpha {alpha:g}; {needed} are needed"
            if quantile is None
            else "largest score change of a new user, held with probability at least 1 - alpha",
        },
        "changed_top10": {
            "alpha": alpha,
            "n": n,
            "users": changed,
            "share": changed / n,
            "low": low,
            "high": high,
        },
    }


def _verdict(
    kind: str,
    merged: str | None,
    measured: Mapping[str, Mapping[str, Any]],
    modules: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """`exact` or `approximate` for each cohort, by `RULE`."""
    if kind in ("separate", "activated"):
        unmoved = all(cohort["bit_identical"] for cohort in measured.values())
        return dict.fromkeys(measured, "exact" if unmoved else "approximate")
    spanned = bool(modules) and all(
        module["residual"] is not None and module["residual"] <= SPAN_TOLERANCE
        for module in modules.values()
    )
    protected = measured["protected"]
    still = protected["max_score_change"] <= SCORE_TOLERANCE * protected["score_std"]
    exact = kind == "nullspace" and merged is None and spanned and still
    return {"protected": "exact" if exact else "approximate", "heldout": "approximate"}


def _sentence(
    kind: str,
    merged: str | None,
    measured: Mapping[str, Mapping[str, Any]],
    verdict: Mapping[str, str],
    awake: int | None,
) -> str:
    """One sentence for a product owner: what is promised, and what is only measured."""
    inside, outside = measured["protected"], measured["heldout"]
    both = f"{inside['users']} protected and {outside['users']} held-out users"
    if verdict["heldout"] == "exact":
        proviso = (
            f", if serving says where each request begins: {awake} of their prompts hold the "
            "invocation tokens themselves, and left to find these PEFT would wake the adapter there"
        )
        return (
            f"Promised: no recommendation changes for any user, because the ranking never reads "
            f"the adapter; checked on {both}, whose scores are all bit-identical"
            f"{proviso if awake else ''}."
        )
    spread = f"(scores spread by {_number(inside['score_std'])})"
    moved = _number(inside["max_score_change"])
    state = f"With the adapter merged into {merged} n" if merged else "N"
    if kind in ("separate", "activated"):
        promise = (
            f"Broken promise: the ranking was not to read the adapter, yet scores moved by up to "
            f"{_number(max(c['max_score_change'] for c in measured.values()))} {spread}"
        )
    elif verdict["protected"] == "exact":
        promise = (
            f"Promised: the scores of the {inside['users']} protected users stay as they were, up "
            f"to rounding (largest change measured {moved}) {spread}"
        )
    else:
        promise = (
            f"{state}othing is promised; measured on the {inside['users']} protected users: "
            f"{inside['top10_identical']:.1%} keep exactly their top 10, and no score moved by "
            f"more than {moved} {spread}"
        )
    conformal, changed = outside["conformal"], outside["changed_top10"]
    confidence = f"{100 * (1 - changed['alpha']):g}%"
    bound = (
        f"{conformal['n']} are too few to bound a new user's score change at {confidence}"
        if conformal["quantile"] is None
        else f"a new user like them sees no score change above {_number(conformal['quantile'])} "
        f"with {confidence} probability"
    )
    return (
        f"{promise}; measured on {outside['users']} held-out users: "
        f"{outside['top10_identical']:.1%} keep exactly their top 10 (at {confidence} confidence "
        f"it changes for {changed['low']:.1%} to {changed['high']:.1%} of such users), no score "
        f"moved by more than {_number(outside['max_score_change'])}, and {bound}."
    )


def _number(value: float) -> str:
    return f"{value:.3g}"


def _contains(row: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether `tokens` follow one another somewhere in `row`."""
    size, row = len(tokens), list(row)
    return any(row[at : at + size] == list(tokens) for at in range(len(row) - size + 1))


def _score_std(scores: np.ndarray, seen: np.ndarray | None) -> float:
    """Standard deviation of a user's scores over unseen items, mean over users."""
    unseen = np.ones(scores.shape, dtype=bool) if seen is None else ~seen
    spreads = [row[keep].std() for row, keep in zip(scores, unseen, strict=True) if keep.any()]
    return float(np.mean(spreads))


def _quantisation(model: nn.Module) -> dict[str, Any]:
    config = getattr(causal_lm(model).config, "quantization_config", None)
    return config if isinstance(config, dict) else config.to_dict() if config is not None else {}


def _quantisation_sha256(model: nn.Module) -> str | None:
    about = _quantisation(model)
    text = json.dumps(about, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest() if about else None


def _digest(tensors: Mapping[str, Tensor], about: object = None) -> str:
    """SHA-256 of tensors by name, and of a JSON value."""
    text = json.dumps([tensors_sha256(tensors.items()), about], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(value: Any) -> Any:
    """The same JSON value with None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
