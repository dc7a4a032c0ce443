"""How fast, and in how much memory, the metadata of books is read.

Writes a synthetic catalogue with the line lengths of meta_Books.jsonl.gz (2023) to
benchmarks/.cache, reads it once with `load_books`, one item in nine wanted, and prints CPU seconds,
lines a CPU second and memory.
"""

import argparse
import gzip
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from shielded_recrl.data.metadata import load_books
from shielded_recrl.data.quarantine import Quarantine

CACHE = Path(__file__).resolve().parents[1] / ".cache"
PUBLISHED = 4_448_181


def catalogue(path: Path, lines: int) -> None:
    """Write `lines` books in the format of 2023."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(3, 9))) for _ in range(5000)]

    def text(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as stream:
        for number in range(lines):
            book = {
                "main_category": "Books",
                "title": text(8),
                "subtitle": text(3),
                "author": {"avatar": "https://m.media-amazon.com/a.jpg", "about": [text(60)]},
                "average_rating": 4.5,
                "rating_number": 12,
                "features": [text(100)],
                "description": [text(80), text(40)],
                "price": "12.3",
                "images": [{"large": "https://m.media-amazon.com/images/I/x.jpg"}] * 2,
                "videos": [],
                "store": text(3),
                "categories": ["Books", "Literature & Fiction", text(2)],
                "details": {"Publisher": text(4), "Language": "English"},
                "parent_asin": f"{number:010d}",
                "bought_together": None,
            }
            stream.write(json.dumps(book) + "\n")


def megabytes() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=300_000)
    lines = parser.parse_args().lines
    CACHE.mkdir(exist_ok=True)
    path = CACHE / f"meta_Books_{lines}.jsonl.gz"
    if not path.exists():
        catalogue(path, lines)
    wanted = {f"{number:010d}" for number in range(0, lines, 9)}
    before, start = megabytes(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, Quarantine(Path(folder, "bad")) as quarantine:
        found = load_books(path, wanted, quarantine)
    seconds = time.process_time() - start
    assert (found.read, len(found.frame)) == (lines, len(wanted))
    print(f"{lines} lines, {path.stat().st_size / 1e6:.0f} MB compressed, {len(wanted)} wanted")
    print(f"{seconds:.1f} CPU s, {lines / seconds:.0f} lines a CPU second")
    print(f"memory {before:.0f} MB before, {megabytes():.0f} MB at most")
    print(f"table {found.frame.estimated_size() / 1e6:.0f} MB")
    print(f"the {PUBLISHED} lines published: about {PUBLISHED * seconds / lines:.0f} CPU s")


if __name__ == "__main__":
    main()
