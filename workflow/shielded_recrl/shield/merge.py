"""Merging an adapter into its base, and certifying the ranking again afterwards.

W + (alpha / r) B A is formed once in fp32 and then rounded to the precision it is served in. The
rounding falls differently on the merged weights than on the base's, so scores move even where B A
is zero on every input the ranking reads: a certificate of the unmerged adapter says nothing about
the merged model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import is_activated, load_adapter
from shielded_recrl.explainer.settings import Precision
from shielded_recrl.shield.certificate import (
    Cohort,
    adapter_sha256,
    certify,
    cohort_scores,
)
from shielded_recrl.shield.digests import weights_sha256
from shielded_recrl.shield.moments import Head


def merged(
    base_folder: Path, adapter_folder: Path, precision: Precision, device: torch.device
) -> nn.Module:
    """A base LM with the adapter in its weights, frozen, as it is served.

    The merge takes place in fp32, so the machine has to hold the base in fp32 once.

    Args:
        base_folder: folder of the base LM.
        adapter_folder: PEFT folder of the adapter.
        precision: precision the merged model is served in.
        device: where it is served.

    Raises:
        UserError: the adapter is an activated LoRA or does not fit the base, or the precision
            needs a library that is not installed.
    """
    from shielded_recrl.explainer.base import load_base

    with _merged_folder(base_folder, adapter_folder, device) as (folder, _):
        return load_base(folder, precision, device)


def certify_merged(
    base_folder: Path,
    adapter_folder: Path,
    head: Head,
    protected: Cohort | Sequence[Sequence[int]],
    heldout: Cohort | Sequence[Sequence[int]],
    precisions: Sequence[Precision] = ("fp32", "bf16", "nf4"),
    *,
    kind: str = "nullspace",
    device: torch.device | None = None,
    batch_size: int = 64,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Certify the merged model in each precision, against the base served in the same precision.

    Args:
        base_folder: folder of the base LM.
        adapter_folder: PEFT folder of the adapter.
        head: hidden states [n, d] -> scores [n, I].
        protected, heldout: the cohorts, or their prompts alone.
        precisions: what the merged model may be served in; none: nothing is loaded.
        kind: kind of the shield the adapter was trained under.
        device: where the model is served; None: the first GPU, else the CPU.
        batch_size: prompts in a forward pass.
        settings: further arguments of `certify`.

    Returns:
        precision -> certificate. Its hash `base` is that of the base as served, `merged` that of
        the merged weights. Where a precision needs bitsandbytes and it is not installed, the entry
        holds `merged`, `verdict` None and a `sentence` that says so.

    Raises:
        UserError: as `merged` and `certify`, or the temporary folder has no room for the merge.
    """
    from shielded_recrl.explainer.base import default_device, load_base

    if not precisions:
        return {}
    device = device or default_device()
    cohorts = [c if isinstance(c, Cohort) else Cohort(c) for c in (protected, heldout)]
    certificates: dict[str, dict[str, Any]] = {}
    with _merged_folder(base_folder, adapter_folder, device) as (folder, adapter):
        for precision in precisions:
            if precision in ("int8", "nf4") and not _quantises():
                certificates[precision] = {
                    "merged": precision,
                    "verdict": None,
                    "sentence": "not measured: bitsandbytes is not installed",
                }
                continue
            base = load_base(base_folder, precision, device)
            certificate = certify(
                load_base(folder, precision, device),
                head,
                *cohorts,
                kind=kind,
                merged=precision,
                reference=tuple(cohort_scores(base, head, c, batch_size) for c in cohorts),
                batch_size=batch_size,
                **settings,
            )
            hashes = certificate["hashes"]
            hashes |= {"merged": hashes["base"], "base": weights_sha256(base), "adapter": adapter}
            certificates[precision] = certificate
    return certificates


@contextmanager
def _merged_folder(
    base_folder: Path, adapter_folder: Path, device: torch.device
) -> Iterator[tuple[Path, str]]:
    """A temporary folder with the merged model in fp32, and the digest of the adapter in it."""
    from safetensors import SafetensorError

    from shielded_recrl.explainer.base import load_base

    model = load_adapter(load_base(base_folder, "fp32", device), adapter_folder)
    if is_activated(model):
        raise UserError(
            f"{adapter_folder}: an activated adapter cannot be merged, since it acts on some "
            "tokens only; serve it beside the base"
        )
    adapter = adapter_sha256(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.merge_and_unload().save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder}: the merged model cannot be written ({error}); set TMPDIR to a folder "
                "with room for the base in fp32"
            ) from error
        del model
        yield Path(folder), adapter


def _quantises() -> bool:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return False
    return True
