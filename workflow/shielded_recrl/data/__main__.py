"""Entry point of the data stage."""

from shielded_recrl.cli import run_stage

run_stage(
    "data",
    {
        "world": "write the embedded synthetic raw files of one dataset",
        "download": "fetch one file, verified by size and sha256",
        "prepare": "raw files to interactions, items, users and splits",
    },
)
