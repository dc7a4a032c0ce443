"""Entry point of the cluster commands."""

from shielded_recrl.cli import run_stage

run_stage(
    "cluster",
    {
        "doctor": "check GPU, memory, disk, tokens and data terms against a config",
        "pack": "write a dataset's finished work into one archive",
        "unpack": "restore an archive so that nothing in it runs again",
    },
)
