"""Loading the base LM: embedded, a local folder or a hub id, in the precision it is served in.

Only safetensors weights are read, remote code is never run, and a hub id comes with the commit
it is pinned to.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.explainer.lm import not_finite, switch_off_dropout
from shielded_recrl.explainer.settings import Precision
from shielded_recrl.files import intact
from shielded_recrl.machine import lease_gpu


def default_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU.

    Of several, torchrun has given each process its own; any other takes one that no job has.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if (count := torch.cuda.device_count()) > 1 and not distributed.is_torchelastic_launched():
        torch.cuda.set_device(lease_gpu(count))
    return torch.device("cuda", torch.cuda.current_device())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a model folder; padding falls back to the end-of-text token.

    Raises:
        UserError: the folder holds no tokenizer, or one without an end-of-text token.
    """
    _require_model_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # tokenizers raises plain exceptions.
    except Exception as error:
        raise UserError(f"{folder}: no readable tokenizer ({first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{folder}: the tokenizer has no eos_token; set one in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(folder: Path, precision: Precision, device: torch.device) -> PreTrainedModel:
    """Read a causal LM, frozen, dropout off.

    Raises:
        UserError: no safetensors weights, damaged ones, or a precision this machine lacks.
    """
    _require_model_folder(folder)
    options = {"dtype": torch.float32 if precision == "fp32" else torch.bfloat16}
    if precision in ("nf4", "int8"):
        options["quantization_config"] = _quantization(precision)
        options["device_map"] = {"": device}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        # transformers only warns about weights that it had to make up.
        if missing := report["missing_keys"]:
            raise ValueError(f"it has no {min(missing)}")
        if (name := not_finite(model.named_parameters())) is not None:
            raise ValueError(f"{name} holds what is no number")
    except Exception as error:
        raise UserError(
            f"{folder}: the base LM cannot be loaded ({first_line(error)}); "
            "delete the folder and make or fetch it again"
        ) from error
    if precision not in ("nf4", "int8"):
        model.to(device)
    model.requires_grad_(False)
    switch_off_dropout(model)
    return model


def _quantization(precision: Precision):
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"explainer.precision: {precision} needs bitsandbytes; install it with "
            "`pip install -c requirements.lock -e .[quant]`"
        ) from error
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def _require_model_folder(folder: Path) -> None:
    if not (Path(folder) / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json there; explainer.base must be `embedded`, a folder in "
            "transformers format, or a hub id"
        )
    intact(folder)
