"""Fetch one raw file and prove that it is the right one.

In: a URL and the sha256 the file must have. Out: the file, renamed into place only when its size
and its digest are right. Where no digest is known yet, the first fetch writes it beside the file
(`FILE.sha256`), and later fetches have to match it.
"""

from __future__ import annotations

import http.client
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from shielded_recrl.errors import UserError
from shielded_recrl.files import atomic, write_text
from shielded_recrl.files import sha256 as digest

BLOCK = 1 << 20
# Worth another try: the server or the road is busy, not the request wrong.
PASSING = {408, 425, 429, 500, 502, 503, 504}
AGENT = "shielded-recrl/0.1"


class Interrupted(Exception):
    """A transfer that may succeed when tried again."""


def main(
    *,
    url: str,
    out: Path,
    sha256: str | None = None,
    size: int | None = None,
    retries: int = 5,
    backoff: float = 2.0,
    timeout: float = 60.0,
) -> None:
    """Fetch one file, verified by size and sha256.

    Args:
        url: where it is (http or https).
        out: where it goes.
        sha256: its hex digest; without one, the digest of the first fetch is recorded.
        size: its bytes, if known.
        retries: further tries after a failure that may pass.
        backoff: seconds before the second try, doubled for each further one.
        timeout: seconds without an answer before a try fails.
    """
    record = out.with_name(f"{out.name}.sha256")
    expected, source = sha256, "--sha256"
    if expected is None and record.is_file():
        expected, source = record.read_text(encoding="utf-8").split()[0], str(record)
    with atomic(out) as partial:
        for attempt in range(retries + 1):
            try:
                _fetch(url, partial, size, timeout)
                break
            except Interrupted as error:
                if attempt == retries:
                    raise UserError(
                        f"{url}: {error} after {retries + 1} tries; check the network, or fetch "
                        "the file yourself and give its path as the source of the dataset"
                    ) from None
                pause = backoff * 2**attempt
                print(f"{url}: {error}; next try in {pause:g} s", file=sys.stderr)
                time.sleep(pause)
        found = digest(partial)
        if expected is not None and found != expected.lower():
            raise UserError(
                f"{url}: sha256 is {found}, expected {expected} (from {source}); the file was "
                "changed on the way or by its owner: compare with the owner's page, then mend "
                "the expected value"
            )
    if expected is None:
        write_text(record, f"{found}  {out.name}\n")
        print(f"{record}: no sha256 was known; recorded {found}", file=sys.stderr)
    print(f"{out}: {out.stat().st_size} bytes, sha256 {found}")


def _fetch(url: str, path: Path, size: int | None, timeout: float) -> None:
    """Fetch once into `path`.

    Raises:
        Interrupted: it may work another time.
        UserError: it will not.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: not an address; expected https://...")
    request = urllib.request.Request(url, headers={"User-Agent": AGENT})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer, path.open("wb") as target:
            announced = answer.headers.get("Content-Length")
            total = int(announced) if announced else size
            if size is not None and total != size:
                raise UserError(
                    f"{url}: {total} bytes on offer, expected {size}; its owner changed the file: "
                    "compare with the owner's page, then mend the expected values"
                )
            with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
                while block := answer.read(BLOCK):
                    target.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code in PASSING:
            raise Interrupted(f"HTTP {error.code} {error.reason}") from None
        raise UserError(f"{url}: HTTP {error.code} {error.reason}; check the address") from None
    except urllib.error.URLError as error:
        raise Interrupted(str(error.reason)) from None
    except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise Interrupted(str(error) or type(error).__name__) from None
    got = path.stat().st_size
    if total is not None and got != total:
        raise Interrupted(f"{got} of {total} bytes arrived")
