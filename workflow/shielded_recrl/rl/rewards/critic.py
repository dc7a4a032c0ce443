"""A frozen learned reward critic: a sequence classifier whose outputs are named components.

It is a reward, and no part of PPO's value critic: nothing of it is trained here, and a weight that
changes under it stops the run. In: a transformers encoder with a classification head, or any
module whose output has `.logits` [n, heads]. Out: sigmoid(logit) of each head. No text can spell a
special token: what is spelled like one is text, or is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import intact, sealed

WEIGHTS = "model.safetensors"


class LearnedCritic:
    """Scores responses by named heads of a frozen encoder. A `Reward`.

    A component is the logistic function of its logit: in (0, 1), increasing, and the probability
    itself where a head was trained with binary cross-entropy or on preferences (Bradley and Terry
    1952).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        heads: Sequence[str],
        *,
        batch_size: int = 32,
        max_tokens: int = 256,
        read_prompt: bool = False,
    ):
        """
        Args:
            model: gives `.logits` [n, len(heads)]; is frozen and set to evaluation mode.
            tokenizer: the model's, a fast one with a padding token.
            heads: component names, in the order of the logits.
            batch_size: responses in one forward pass.
            max_tokens: of one input; a response is cut at its end.
            read_prompt: whether the prompt stands as context in the first segment, cut at its
                beginning to what the response leaves. The score is of the response all the same.

        Raises:
            UserError: no heads, or two of one name; no padding token; a number below 1.
        """
        if not heads or len(set(heads)) < len(heads):
            raise UserError(f"reward critic: heads need names of their own, got {list(heads)}")
        if tokenizer.pad_token_id is None:
            raise UserError("reward critic: the tokenizer has no padding token; set pad_token")
        if batch_size < 1:
            raise UserError(f"reward critic: batch_size must be at least 1, got {batch_size}")
        if max_tokens <= tokenizer.num_special_tokens_to_add(pair=read_prompt):
            raise UserError(f"reward critic: max_tokens {max_tokens} leaves no room for a response")
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.heads = tuple(heads)
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.read_prompt = read_prompt
        self._special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self._versions = self._state()

    @classmethod
    def load(cls, folder: Path, **options: Any) -> LearnedCritic:
        """Read a critic from a local folder: config.json, model.safetensors, tokenizer files.

        The heads are the labels of the config. No code from the folder is run.

        Args:
            folder: as written by `save` or by transformers' `save_pretrained`.
            options: keyword arguments of `LearnedCritic`.

        Raises:
            UserError: a file is missing or damaged, or the weights do not fill the model.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = Path(folder)
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{folder}: no {WEIGHTS} in it; give the folder of a saved critic")
        intact(folder)
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        # transformers, tokenizers and safetensors each raise their own kinds for a damaged file.
        except Exception as error:
            raise UserError(
                f"{folder}: not a readable reward critic ({first_line(error)}); save it again"
            ) from error
        if report["missing_keys"]:
            raise UserError(
                f"{folder / WEIGHTS}: has no {min(report['missing_keys'])}; save the critic with "
                "its classification head"
            )
        labels = model.config.id2label
        return cls(model, tokenizer, [labels[index] for index in sorted(labels)], **options)

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads, by rename when whole; the heads become its labels."""
        self.model.config.id2label = dict(enumerate(self.heads))
        self.model.config.label2id = {name: index for index, name in enumerate(self.heads)}
        with sealed(Path(folder)) as partial:
            self.model.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[Any]
    ) -> dict[str, Tensor]:
        """One component a head, float32 [n] in (0, 1).

        Responses are scored shortest first, equal ones in their order, so that neither their order
        nor `batch_size` changes more than rounding.

        Raises:
            UserError: the critic is no longer as it was frozen, or its logits are not [n, heads].
        """
        self._check_frozen()
        inputs = [
            self.encoded(prompt, text) for prompt, text in zip(prompts, responses, strict=True)
        ]
        order = sorted(range(len(inputs)), key=lambda row: len(inputs[row]["input_ids"]))
        logits = torch.empty(len(inputs), len(self.heads))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            logits[rows] = self._logits([inputs[row] for row in rows])
        return dict(zip(self.heads, torch.sigmoid(logits).T.contiguous(), strict=True))

    def encoded(self, prompt: str, response: str) -> dict[str, list[int]]:
        """What the encoder reads of a prompt and a response."""
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add(pair=self.read_prompt)
        bounds = self._bounds(response)
        response = response[: bounds[:room][-1][1]] if bounds else ""
        if not self.read_prompt:
            return self._inputs(response)
        left = room - min(len(bounds), room)
        bounds = self._bounds(prompt)[-left:] if left else []
        prompt = prompt[bounds[0][0] :] if bounds else ""
        return self._inputs(prompt, response)

    def _inputs(self, *texts: str) -> dict[str, list[int]]:
        """Texts in the tokenizer's template, of which alone special tokens are."""
        found = self.tokenizer(
            *texts, truncation=True, max_length=self.max_tokens, split_special_tokens=True
        )
        # A unigram model has special tokens among its pieces, and finds them all the same.
        kept = [
            part is None or token not in self._special
            for part, token in zip(found.sequence_ids(), found["input_ids"], strict=True)
        ]
        return {name: list(compress(values, kept)) for name, values in found.items()}

    def _bounds(self, text: str) -> list[tuple[int, int]]:
        """Where each token begins and ends in a text."""
        return self.tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=True,
            verbose=False,
        )["offset_mapping"]

    @torch.no_grad()
    def _logits(self, inputs: list[dict[str, list[int]]]) -> Tensor:
        batch = self.tokenizer.pad(inputs, return_tensors="pt")
        device = next((weight.device for weight in self.model.parameters()), torch.device("cpu"))
        logits = self.model(**batch.to(device)).logits
        if logits.shape != (len(inputs), len(self.heads)):
            raise UserError(
                f"reward critic: logits {list(logits.shape)} for {len(inputs)} responses and "
                f"{len(self.heads)} heads; name each output of the model once"
            )
        return logits.float().cpu()

    def _check_frozen(self) -> None:
        thawed = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
        if thawed:
            raise UserError(f"reward critic: {thawed[0]} wants a gradient; the critic is frozen")
        if any(module.training for module in self.model.modules()):
            raise UserError("reward critic: it was set to training mode; call eval() on it")
        changed = [
            name for name, state in self._state().items() if state != self._versions.get(name)
        ]
        if changed:
            raise UserError(
                f"reward critic: {changed[0]} changed since it was frozen; "
                "give the optimizer other parameters, or build the critic anew"
            )

    def _state(self) -> dict[str, tuple[int, int]]:
        """Identity and count of in-place writes of every tensor: a check that reads no weight."""
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        return {name: (id(tensor), tensor._version) for name, tensor in tensors}
