"""Raw interactions to results/aggregate_results.csv: one rule file a stage."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/ranker.smk"
include: "rules/explainer.smk"
include: "rules/shield.smk"
include: "rules/rl.smk"
include: "rules/audit.smk"
include: "rules/dialogue.smk"
include: "rules/report.smk"


# On a cluster these run where Snakemake does: jobs of seconds, and downloads, which nodes often can't.
localrules:
    all,
    download,
    fetch,
    make_world,
    make_dialogues,
    summarise_audits,
    gate,
    aggregate,
    significance,
    criteria,
    pages,
    model_card,
    manifest,
    report_dialogue,
    manifest_dialogue,


wildcard_constraints:
    dataset="[a-z0-9]+",
    base="[A-Za-z0-9._-]+",
    variant="[A-Za-z0-9_]+",
    seed="[0-9]+",
    tokens="[0-9]+",


rule all:
    default_target: True
    input:
        "results/manifest.json",
    message:
        "Table, figures, pages and release folders are up to date"
