"""Where the files of the dialogue branch lie: what its rules read, and the flags they pass on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shielded_recrl.dialogue.settings import DialoguePrepareSettings, DialogueSettings
from shielded_recrl.hub import EMBEDDED, fetched_name, model_folder
from shielded_recrl.settings import flags, section
from shielded_recrl.study import BUCKET, Study

MADE = "results/dialogue/raw"
COMMENTS = ("train", "dev", "test")


class DialogueStudy:
    """Inputs and flags of a config's dialogue branch."""

    def __init__(self, settings: DialogueSettings, study: Study):
        """
        Args:
            settings: the section `dialogue`.
            study: knows which paths rules make.
        """
        self.settings, self.study = settings, study

    def raw_inputs(self) -> dict[str, str | list[str]]:
        """Raw files: `raw`, a zip or the folder a rule makes, or `files` of a folder of the user's own;
        beside them `genres`, if there are any of the user's."""
        data = self.settings.data
        if data.source == "embedded":
            return {"raw": MADE}
        genres = {"genres": data.genres} if data.genres else {}
        if data.source == "download":
            return {"raw": self._published("redial")[0]} | genres
        if Path(data.source).suffix == ".zip":
            return {"raw": data.source} | genres
        return {"files": [_within(data.source, name) for name in self._names()]} | genres

    def prepare_flags(self, inputs: Mapping[str, Any]) -> str:
        """Flags of `dialogue prepare`.

        Args:
            inputs: where the job finds what `raw_inputs` names.
        """
        data = self.settings.data
        raw = inputs["raw"] if "raw" in inputs else self._raw_folder(inputs["files"])
        words = ["--raw", shlex.quote(raw)]
        for name in ("train", "test"):
            words += [f"--{name}", *map(shlex.quote, getattr(data, name))]
        words += ["--movies", shlex.quote(data.movies)]
        embedded = data.source == "embedded"
        genres = f"{inputs['raw']}/movies.csv" if embedded else inputs.get("genres")
        words += ["--genres", shlex.quote(genres)] if genres else []
        words += ["--synthetic", str(embedded)]
        return f"{' '.join(words)} {flags(section(data, DialoguePrepareSettings))}"

    def comment_inputs(self) -> list[str]:
        """Files of GoEmotions, or the folder of the embedded world."""
        source = self.settings.emotions.goemotions
        if source == "embedded":
            return [MADE]
        if source == "download":
            return self._published("goemotions")
        if source.startswith(BUCKET):
            # Only plain ones: what else lies there is not looked for.
            return [_within(source, f"{name}.tsv") for name in COMMENTS]
        files = [*Path(source).glob("*.tsv"), *Path(source).glob("*.tsv.gz")]
        return sorted(str(path) for path in files if path.name.split(".")[0] in COMMENTS)

    def comment_folder(self, inputs: list[str]) -> str:
        """Folder of GoEmotions.

        Args:
            inputs: where the job finds what `comment_inputs` names.
        """
        source = self.settings.emotions.goemotions
        if source == "embedded":
            return f"{inputs[0]}/goemotions"
        copied = source == "download" or source.startswith(BUCKET)
        return str(Path(inputs[0]).parent) if copied else source

    def emotion_inputs(self) -> dict[str, str]:
        """What `dialogue annotate` reads beside the turns: the classifier, if it is one."""
        if self.settings.emotions.source == "lexicon":
            return {}
        return {"model": "results/dialogue/emotion/model.safetensors"}

    def base_folder(self) -> str:
        """Folder of the base LM of responses: made, fetched, or the user's own."""
        return self._model(self.settings.response.base) or "results/dialogue/response/base"

    def encoder_folder(self) -> str | None:
        """Folder of the critic's pretrained encoder; None where it is trained from scratch."""
        return self._model(self.settings.critic.encoder)

    def model_inputs(self, folder: str | None) -> list[str]:
        """A model as inputs: the folder that a rule makes, or the files of the user's own."""
        if folder is None:
            return []
        return [folder] if self.study.made(folder) else self.study.model_files(folder)

    def revisions(self) -> dict[str, str]:
        """Folder name of each model from the hub -> the commit it is pinned to."""
        response, critic = self.settings.response, self.settings.critic
        named = ((response.base, response.revision), (critic.encoder, critic.encoder_revision))
        return {fetched_name(name): revision for name, revision in named if revision}

    def _names(self) -> list[str]:
        """Raw files: names within `source`, or absolute paths."""
        data = self.settings.data
        return [*data.train, *data.test, data.movies]

    def _raw_folder(self, files: Sequence[str]) -> str:
        """Where a job finds `source`, from where it finds the files that `raw_inputs` names."""
        for name, path in zip(self._names(), files, strict=True):
            if not Path(name).is_absolute():
                return str(Path(path).parents[len(Path(name).parts) - 1])
        return self.settings.data.source

    def _published(self, release: str) -> list[str]:
        return [f"resources/raw/{release}/{file}" for file in self.study.downloads[release]]

    def _model(self, name: str) -> str | None:
        return None if name == EMBEDDED else model_folder(name)


def _within(folder: str, name: str) -> str:
    """Path of a file in a folder, or in one of a bucket, unless it is absolute."""
    if folder.startswith(BUCKET) and not Path(name).is_absolute():
        return f"{folder.rstrip('/')}/{name}"
    return str(Path(folder, name))
