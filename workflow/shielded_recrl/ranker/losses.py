"""Losses of next-item prediction: full softmax, sampled softmax, gBCE and BCE.

In: states [N, d] before their next items, the item embeddings [I+1, d] with row 0 for padding, and
the ids of the next items [N], 1..I. Out: a mean over the N targets.

- `ce`: cross-entropy over the whole catalogue (Klenitskiy and Vasilev 2023, "Turning Dross Into Gold
  Loss"), a chunk of rows at a time, so that memory does not grow with the batch.
- `sampled_softmax`: the same over the target and K negatives that the batch shares, with the logQ
  correction that makes it an estimate of `ce` (Bengio and Senecal 2008; Yi et al. 2019).
- `gbce`: binary cross-entropy with K shared negatives and the positive weighted down so that
  sampling does not make the model overconfident (Petrov and Macdonald 2023, gSASRec).
- `bce`: one negative a target, as in the original SASRec (Kang and McAuley 2018).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits held at once, 4 bytes each: as many as stay in a processor's cache, or keep a GPU busy; and
# at least so many rows, since each chunk also touches the whole catalogue.
CHUNK = {"cpu": 2**19, "cuda": 2**27}
ROWS = 64
# Logit of a negative that is the target: no share of a softmax, and finite, so that gradients are.
NEVER = -1e9


def next_item_loss(
    kind: str,
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    negatives: int,
    calibration: float,
) -> Tensor:
    """The loss `kind` of the settings; negatives are drawn uniformly by torch's global generator.

    Args:
        kind: ce, sampled_softmax, gbce or bce.
        states: [N, d].
        items: [I+1, d].
        targets: ids, int64 [N].
        negatives: K of sampled_softmax and gbce.
        calibration: t of gbce.
    """
    if kind == "ce":
        return full_softmax(states, items, targets)
    if kind == "bce":
        return bce(states, items, targets, _uniform(len(targets), items))
    shared = _uniform(negatives, items)
    if kind == "sampled_softmax":
        return sampled_softmax(states, items, targets, shared)
    return gbce(states, items, targets, shared, calibration)


def full_softmax(states: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean of logsumexp_i <s, e_i> - <s, e_target>, without ever holding all N x I logits."""
    return _Softmax.apply(states, items, targets, None)


def sampled_softmax(states: Tensor, items: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Mean of log(e^s+ + sum_j e^(s_j - log(K q))) - s+, with q = 1/I for each item.

    A negative that is the target itself does not count.

    Args:
        states: [N, d].
        items: [I+1, d].
        targets: ids [N].
        negatives: ids drawn uniformly with replacement [K].
    """
    return _Softmax.apply(states, items, targets, negatives)


def gbce(
    states: Tensor, items: Tensor, targets: Tensor, negatives: Tensor, calibration: float
) -> Tensor:
    """Mean of -(beta log sigmoid(s+) + sum_j log sigmoid(-s_j)) / (K + 1).

    With a = K / (I - 1) the sampling rate and t the calibration, beta = a (t (1 - 1/a) + 1/a):
    t = 0 is plain BCE, t = 1 undoes the sampling in full.
    """
    rate = len(negatives) / (len(items) - 2)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    own = F.logsigmoid(_own_logits(states, items, targets))
    others = F.logsigmoid(-_other_logits(states, items, targets, negatives)).sum(dim=1)
    return -(beta * own + others).mean() / (len(negatives) + 1)


def bce(states: Tensor, items: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Mean of -(log sigmoid(s+) + log sigmoid(-s-)) / 2, one negative [N] a target."""
    own = F.logsigmoid(_own_logits(states, items, targets))
    other = _own_logits(states, items, negatives).masked_fill(negatives == targets, NEVER)
    return -(own + F.logsigmoid(-other)).mean() / 2


def _uniform(count: int, items: Tensor) -> Tensor:
    return torch.randint(1, len(items), (count,), device=items.device)


def _own_logits(states: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    return (states * F.embedding(ids, items)).sum(dim=1).float()


def _other_logits(states: Tensor, items: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Scores of the shared negatives [N, K], NEVER where one is the target."""
    logits = (states @ F.embedding(negatives, items).T).float()
    return logits.masked_fill(negatives == targets[:, None], NEVER)


class _Softmax(torch.autograd.Function):
    """Softmax cross-entropy of the target among others: the whole catalogue, or shared negatives.

    Its gradients are made beside the loss, a chunk of rows at a time: logits never leave the cache,
    and none are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx, states: Tensor, items: Tensor, targets: Tensor, negatives: Tensor | None
    ) -> Tensor:
        dtype = states.dtype
        others = (items[1:] if negatives is None else F.embedding(negatives, items)).to(dtype)
        log_expected = 0.0 if negatives is None else math.log(len(negatives) / (len(items) - 1))
        total = states.new_zeros((), dtype=torch.float32)
        grad_states, grad_items = torch.empty_like(states), torch.zeros_like(items)
        grad_others = torch.zeros_like(others, dtype=items.dtype)
        rows = max(ROWS, CHUNK[states.device.type] // len(others))
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            state, target = states[part], targets[part]
            own_item = F.embedding(target, items).to(dtype)
            own = (state * own_item).sum(dim=1).float()
            logits = (state @ others.T).float()
            if negatives is None:
                logits.scatter_(1, target[:, None] - 1, NEVER)
            else:
                logits.sub_(log_expected).masked_fill_(negatives == target[:, None], NEVER)
            log_z = torch.logaddexp(logits.logsumexp(dim=1), own)
            total += (log_z - own).sum()
            # The slope of the loss in each logit: its probability, less 1 for the target.
            slope = logits.sub_(log_z[:, None]).exp_().to(dtype)
            own_slope = (own - log_z).expm1_().to(dtype)[:, None]
            grad_states[part] = slope @ others + own_slope * own_item
            grad_others += slope.T @ state
            grad_items.index_add_(0, target, (own_slope * state).to(items.dtype))
        if negatives is None:
            grad_items[1:] += grad_others
        else:
            grad_items.index_add_(0, negatives, grad_others)
        ctx.save_for_backward(grad_states, grad_items)
        return total / len(states)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_states, grad_items = ctx.saved_tensors
        scale = grad / len(grad_states)
        return grad_states * scale, grad_items * scale, None, None
