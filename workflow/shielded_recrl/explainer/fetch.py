"""Download a base LM from the Hugging Face hub at a pinned commit: safetensors and text files only."""

from __future__ import annotations

import re
from pathlib import Path

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import atomic

# No pickle: *.bin, *.pt and *.py are never downloaded.
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt"]
COMMIT = re.compile("[0-9a-f]{40}")


def main(*, repository: str, revision: str, out: Path) -> None:
    """Download a base LM from the hub; a token is read from HF_TOKEN if it is set.

    Args:
        repository: hub id, for example TinyLlama/TinyLlama-1.1B-Chat-v1.0.
        revision: the 40-digit commit it is pinned to.
        out: folder to write.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if not COMMIT.fullmatch(revision):
        raise UserError(
            f"--revision: {revision!r} is no commit, and what it names may change; give the 40 "
            "hexadecimal digits"
        )
    with atomic(out) as partial:
        try:
            snapshot_download(
                repository, revision=revision, local_dir=partial, allow_patterns=PATTERNS
            )
        except (HfHubHTTPError, OSError) as error:
            raise UserError(
                f"explainer.base: {repository} at {revision} cannot be downloaded "
                f"({hub_reason(error)}); check id, commit, network and HF_TOKEN"
            ) from error
        if not any(partial.glob("*.safetensors")):
            raise UserError(
                f"explainer.base: {repository} at {revision} has no safetensors weights; "
                "choose a commit that has them"
            )
    print(f"{out}: {repository} at {revision}")


def hub_reason(error: Exception) -> str:
    """What the hub refused, on one line and without the token, which a server may quote."""
    from huggingface_hub import get_token

    token = get_token()
    return first_line(Exception(str(error).replace(token, "[token]")) if token else error)
