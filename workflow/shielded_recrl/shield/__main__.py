"""Commands of the shield stage."""

from shielded_recrl.cli import run_stage

run_stage(
    "shield",
    {
        "readout": "Fit the read-out W of the served ranking and choose gamma.",
        "embed": "Embed a shard of the prefixes that the read-out needs.",
        "collect": "Collect a shard of the second moments that the bases are made of.",
        "bases": "Collect an orthonormal basis of every module's inputs on protected prefixes.",
    },
)
