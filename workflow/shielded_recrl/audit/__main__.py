"""Commands of the audit stage."""

from shielded_recrl.cli import run_stage

run_stage(
    "audit",
    {
        "probe": "Ask the LM of a run what the audits judge: samples, attacks, canaries, losses.",
        "score": "Score one shard of the texts whose toxicity an audit judges.",
        "run": "Audit texts, lists and probes of a run before and after training.",
        "summarise": "Judge all audits by the policy: one document, one page, one PDF.",
        "gate": "Fail where a gated variant breaks the policy.",
    },
)
