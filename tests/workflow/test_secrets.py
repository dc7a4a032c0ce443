"""Keys in the environment of a run are in nothing it leaves: results, logs, metadata, report."""

import os
import re

import pytest

from planted import NAMES, SECRETS, names_in, told

pytestmark = pytest.mark.slow


def test_a_run_tells_no_key(tiny):
    assert len(list(tiny.folder.rglob("*"))) > 500
    assert told(tiny.folder) == []


@pytest.fixture(scope="module")
def failed(tiny, tmp_path_factory):
    """A run of which one job ends in a line for the user, one crashes, and one cannot start."""
    copy = tiny.pristine(tmp_path_factory.mktemp("secrets") / "copy")
    (copy.folder / "ratings.csv").write_text("user,stars\n1,5\n")
    prepare = copy.folder / "workflow/shielded_recrl/data/world.py"
    prepare.write_text("import os\nraise RuntimeError('a crash')\n")
    changes = {
        "datasets": {"ml25m": {"source": "ratings.csv"}},
        "study": [
            {"dataset": name, "variants": ["shielded"], "seeds": [1]} for name in ("ml25m", "books")
        ],
    }
    targets = [f"results/data/{name}/stats.json" for name in ("ml25m", "books")]
    result = copy.run(
        *("--keep-going", "--verbose", "--printshellcmds", "--show-failed-logs", *targets),
        changes=changes,
        check=False,
        environment=SECRETS,
    )
    assert result.returncode != 0
    return copy, result.stdout + result.stderr


def test_a_failing_run_tells_no_key(failed):
    copy, said = failed
    assert re.search(r"data prepare: error: ratings\.csv", said)
    assert "RuntimeError: a crash" in said
    assert names_in(said.encode()) == []
    assert told(copy.folder) == []


def test_a_key_would_be_found(tmp_path):
    import base64
    import gzip

    for place, name in enumerate(NAMES):
        text = f"{'x' * place} {SECRETS[name]} and more".encode()
        forms = {"plain": text, "base64": base64.b64encode(text), "packed": gzip.compress(text)}
        for kind, data in forms.items():
            folder = tmp_path / kind
            (folder / "a/.hidden").mkdir(parents=True, exist_ok=True)
            path = folder / "a/.hidden/log"
            path.write_bytes(data)
            assert told(folder) == [f"{path}: {name}"]


def test_no_key_of_the_user_is_planted():
    """Were one of them in the environment already, a message here would show it."""
    assert not set(SECRETS.values()) & set(os.environ.values())
