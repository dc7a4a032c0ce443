"""A correction to Snakemake's S3 plugin, for folders that jobs on other machines make.

In: the plugin, as imported. Out: the same, asking the bucket anew whether a key is a folder.
"""

from __future__ import annotations


def look_for_folders_anew() -> None:
    """Let the S3 plugin forget that a key was no folder.

    The plugin (0.3.6) keeps the answer it got before the job. Where another machine then makes the
    folder, Snakemake calls it missing and stops.
    """
    from snakemake_storage_plugin_s3 import StorageObject

    StorageObject.is_dir = lambda self: any(self.get_subkeys())
