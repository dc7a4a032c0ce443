"""Fetch one raw file, over as many tries and runs as it takes, and prove that it is the right one.

In: an address, and the size and digest the file must have. Out: the file, renamed into place only
when it is whole and right. Until then its bytes are in `FILE.partial`, and `FILE.partial.json`
tells which version of which address they belong to; the next try, or the next run, asks for the
rest of that version alone (Range and If-Range of RFC 9110). Where no digest is known yet, the first
fetch writes it to `FILE.sha256`, and later fetches have to match it; but if nobody told the file's
size either, a cut file would look like a whole one, and nothing is recorded.
"""

from __future__ import annotations

import email.utils
import errno
import hashlib
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import write_json, write_text

BLOCK = 1 << 20
# Worth another try: the server or the road is busy, not the request wrong.
PASSING = {408, 425, 429, 500, 502, 503, 504}
RANGE_NOT_SATISFIABLE = 416
FULL = {errno.ENOSPC, errno.EDQUOT}
# A server that asks for a longer pause is not waited for; the next run goes on from here.
LONGEST_PAUSE = 600.0
# No published file here is larger, and no server may fill the disk.
MAX_BYTES = 16 << 30
AGENT = "shielded-recrl/0.1"
OWN_COPY = "or fetch the file yourself and give its path as the source of the dataset"


class Interrupted(Exception):
    """A transfer that may succeed when tried again, after `pause` seconds if the server says so."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Version:
    """Which bytes a partial file holds.

    Attributes:
        url: where they come from.
        validator: strong ETag, else Last-Modified; none means that the file cannot be continued.
        total: bytes of the whole file, if the server told.
    """

    url: str
    validator: str | None
    total: int | None

    def contradicts(self, other: Version) -> bool:
        """Whether both tell something and it differs."""
        pairs = ((self.validator, other.validator), (self.total, other.total))
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def main(
    *,
    url: str,
    out: Path,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    max_bytes: int | None = None,
    retries: int = 5,
    backoff: float = 2.0,
    timeout: float = 60.0,
) -> None:
    """Fetch one file, verified by size and digest; an interrupted one is continued.

    Args:
        url: where it is (http or https).
        out: where it goes.
        sha256: its hex digest; with neither digest, the sha256 of the first fetch is recorded, if
            its size was known from `size` or the server.
        md5: its hex digest, where its owner publishes that.
        size: its bytes, if known.
        max_bytes: bytes after which a file of unknown size is given up; 16 GiB by default.
        retries: further tries after the last one that brought new bytes.
        backoff: seconds before the second try, doubled for each further one.
        timeout: seconds without an answer before a try fails.
    """
    _require_address(url)
    record = out.with_name(f"{out.name}.sha256")
    expected = [
        (name, value, f"--{name}") for name, value in (("sha256", sha256), ("md5", md5)) if value
    ]
    if not expected and record.is_file():
        expected = [("sha256", _recorded(record), str(record))]
    partial = Partial(out)
    total = _fetch_patiently(url, partial, size, max_bytes or MAX_BYTES, retries, backoff, timeout)
    found = {name: _digest(partial.path, name) for name in {"sha256", *(e[0] for e in expected)}}
    for name, value, source in expected:
        if found[name] != value.lower():
            partial.delete()
            raise UserError(
                f"{url}: {name} is {found[name]}, expected {value} (from {source}); the bytes were "
                "deleted. Run again; if it stays so, its owner changed the file: compare with the "
                "owner's page, then mend the expected value"
            )
    if not expected and total is None:
        print(
            f"{url}: neither size nor digest is known, so a file cut short would not be noticed, "
            f"and nothing was recorded; compare {partial.size} bytes with the owner's page",
            file=sys.stderr,
        )
    elif not expected:
        write_text(record, f"{found['sha256']}  {out.name}\n")
        print(f"{record}: no digest was known; recorded {found['sha256']}", file=sys.stderr)
    partial.finish()
    print(f"{out}: {out.stat().st_size} bytes, sha256 {found['sha256']}")


def _require_address(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        # Reading the port checks it.
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not re.fullmatch("[!-~]+", url):
        raise UserError(f"{url}: not an address; expected https://..., {OWN_COPY}")


class Partial:
    """The bytes that have arrived, and the version they belong to."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(f"{out.name}.partial")
        self._out = out
        self._about = out.with_name(f"{out.name}.partial.json")
        out.parent.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self, url: str) -> Version | None:
        """What the bytes here belong to, if they can be continued from `url`."""
        try:
            about = Version(**json.loads(self._about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        resumable = about.url == url and about.validator is not None
        return about if resumable and 0 < self.size <= (about.total or MAX_BYTES) else None

    def restart(self, version: Version) -> None:
        """Begin a version from its first byte."""
        self.delete()
        write_json(self._about, asdict(version))

    def delete(self) -> None:
        """Forget what has arrived."""
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the file its name."""
        self.path.replace(self._out)
        self._about.unlink()


def _fetch_patiently(
    url: str,
    partial: Partial,
    size: int | None,
    max_bytes: int,
    retries: int,
    backoff: float,
    timeout: float,
) -> int | None:
    """Try until the file is whole; a try that brought new bytes makes up for those that failed.

    Returns:
        Bytes of the whole file, if `size` or the server told.

    Raises:
        UserError: too many tries failed in a row, or another try would not help.
    """
    tries = failures = 0
    version, furthest = partial.version(url), partial.size
    while True:
        tries += 1
        try:
            return _fetch(url, partial, size, max_bytes, timeout)
        except Interrupted as error:
            begun = partial.version(url)
            # The bytes of another version add to none; or a server that always changes its mind
            # would be asked for ever.
            renewed, version = begun != version, begun
            failures = failures + 1 if renewed or partial.size <= furthest else 1
            furthest = partial.size if renewed else max(furthest, partial.size)
            if failures > retries or error.pause > LONGEST_PAUSE:
                kept = ""
                if partial.version(url):
                    kept = f"; {partial.size} bytes are kept for the next run"
                else:
                    partial.delete()
                advice = "check the network"
                if error.pause > LONGEST_PAUSE:
                    advice = f"the server asks to come back in {error.pause:.0f} s"
                raise UserError(
                    f"{url}: {error} after {tries} tries{kept}; {advice}, {OWN_COPY}"
                ) from None
            pause = max(backoff * 2 ** (failures - 1), error.pause)
            print(f"{url}: {error}; next try in {pause:g} s", file=sys.stderr)
            time.sleep(pause)


def _fetch(
    url: str, partial: Partial, size: int | None, max_bytes: int, timeout: float
) -> int | None:
    """Fetch once what is still missing.

    Returns:
        Bytes of the whole file, if `size` or the server told.

    Raises:
        Interrupted: it may work another time.
        UserError: it will not.
    """
    version = partial.version(url)
    if version and version.total == partial.size and size in (None, partial.size):
        return version.total
    # A coded answer would be another sequence of bytes than the one the digest is of.
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if version:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": version.validator}
    request = urllib.request.Request(url, headers=headers)
    try:
        # The address is one of http or https: `fetch` checks it.
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # nosec B310
            total = _begin(url, answer, partial, version, size, max_bytes)
            limit = total if total is not None else max_bytes
            _append(url, answer, partial, total, limit)
    except urllib.error.HTTPError as error:
        if error.code == RANGE_NOT_SATISFIABLE:
            partial.delete()
            raise Interrupted("the server has no more bytes of this version") from None
        if error.code in PASSING:
            pause = _seconds(error.headers.get("Retry-After"))
            raise Interrupted(f"HTTP {error.code} {error.reason}", pause) from None
        raise UserError(
            f"{url}: HTTP {error.code} {error.reason}; check the address, {OWN_COPY}"
        ) from None
    # ValueError: the address that an answer sends to is none.
    except (http.client.HTTPException, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        # What has a file name, or tells of a full disk, is no matter of the network.
        if getattr(error, "filename", None) or getattr(error, "errno", None) in FULL:
            raise UserError(
                f"{partial.path}: {error.strerror}; free some space or choose another folder, and "
                f"run again: the {partial.size} bytes here are kept"
            ) from None
        raise Interrupted(first_line(reason)) from None
    if total is not None and partial.size != total:
        raise Interrupted(f"{partial.size} of {total} bytes arrived")
    return total


def _begin(
    url: str,
    answer: http.client.HTTPResponse,
    partial: Partial,
    version: Version | None,
    size: int | None,
    max_bytes: int,
) -> int | None:
    """Check what an answer offers, and make the partial file ready for it.

    Returns:
        Bytes of the whole file, if known.
    """
    if answer.headers.get_content_type() == "text/html":
        raise UserError(f"{url}: a web page, not the file (a login, a notice); {OWN_COPY}")
    offered = _version(url, answer)
    if answer.status == http.client.PARTIAL_CONTENT:
        start = re.match(rf"bytes {partial.size}-", answer.headers.get("Content-Range", ""))
        if version is None or start is None or version.contradicts(offered):
            partial.delete()
            raise Interrupted("the server continues another version of the file")
        # A part need not tell the total that an earlier answer told.
        told = version.total if offered.total is None else offered.total
    else:
        partial.restart(offered)
        told = offered.total
    if size is not None and offered.total not in (None, size):
        partial.delete()
        raise UserError(
            f"{url}: {offered.total} bytes on offer, expected {size}; its owner changed the file: "
            "compare with the owner's page, then mend the expected values"
        )
    if offered.total is not None and offered.total > max_bytes:
        partial.delete()
        raise UserError(
            f"{url}: {offered.total} bytes on offer, more than max_bytes {max_bytes}; compare "
            "with the owner's page, then raise it"
        )
    return told if size is None else size


def _append(
    url: str,
    answer: http.client.HTTPResponse,
    partial: Partial,
    total: int | None,
    limit: int,
) -> None:
    """Write what arrives behind what is there.

    Raises:
        UserError: more than `limit` bytes arrived.
    """
    with (
        partial.path.open("ab") as target,
        tqdm(
            total=total,
            initial=target.tell(),
            desc=partial.path.name,
            unit="B",
            unit_scale=True,
            # A log is no screen.
            mininterval=0.1 if sys.stderr.isatty() else 30,
        ) as bar,
    ):
        # read1: what has arrived is written, and not lost when the next bytes never come.
        while block := answer.read1(BLOCK):
            target.write(block)
            bar.update(len(block))
            if target.tell() > limit:
                break
    if partial.size > limit:
        partial.delete()
        raise UserError(
            f"{url}: more than the {limit} bytes expected; the bytes were deleted: compare with "
            "the owner's page, then mend the expected size or raise max_bytes"
        )


def _version(url: str, answer: http.client.HTTPResponse) -> Version:
    """What an answer says about the whole file it is, or is a part of."""
    etag = answer.headers.get("ETag")
    strong = etag if etag and not etag.startswith("W/") else None
    if answer.status == http.client.PARTIAL_CONTENT:
        length = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        length = answer.headers.get("Content-Length", "")
    return Version(
        url,
        strong or answer.headers.get("Last-Modified"),
        int(length) if length.isdecimal() else None,
    )


def _seconds(retry_after: str | None) -> float:
    """A Retry-After header, which is a number of seconds or a date, in seconds from now."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, date.timestamp() - time.time())


def _recorded(record: Path) -> str:
    words = record.read_text(encoding="utf-8").split()
    if not words:
        raise UserError(f"{record}: empty; expected a sha256. Delete it to record a new one")
    return words[0]


def _digest(path: Path, name: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, name).hexdigest()
