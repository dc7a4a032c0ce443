"""What working on the copies of files in a bucket takes.

In: the path of a copy; Snakemake's S3 plugin, as imported. Out: the path by the names of the study; the
plugin, asking the bucket anew whether a key is a folder.
"""

from __future__ import annotations

from pathlib import Path

# Where Snakemake keeps the copies that a job works on, and where all that is copied begins.
COPIES, TOPS = ".snakemake", ("results", "resources")


def named(path: Path | str) -> str:
    """A path as results name it: a copy has the name of what it is a copy of.

    >>> named(".snakemake/storage/s3/bucket/folder/results/audit/audit.json")
    'results/audit/audit.json'
    >>> named("/home/me/results/audit/audit.json"), named("org/lm")
    ('/home/me/results/audit/audit.json', 'org/lm')
    """
    parts = Path(path).parts
    tops = [index for index, part in enumerate(parts) if part in TOPS]
    if COPIES not in parts or not tops:
        return str(path)
    return "/".join(parts[tops[-1] :])


def look_for_folders_anew() -> None:
    """Let the S3 plugin forget that a key was no folder.

    The plugin (0.3.6) keeps the answer it got before the job. Where another machine then makes the
    folder, Snakemake calls it missing and stops.
    """
    from snakemake_storage_plugin_s3 import StorageObject

    StorageObject.is_dir = lambda self: any(self.get_subkeys())
