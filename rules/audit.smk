# REQUIRED INPUTS: a run with its evaluation, the base LM, ranker states, results/data/{dataset}, resources/policy.yaml
# OUTPUTS: results/audit/{dataset}/{variant}/seed-{seed}/{probes,audit}.json, results/audit/{audit.json,audit.md,audit.pdf,passed}

AUDIT = "results/audit/{dataset}/{variant}/seed-{seed}"
AUDITS = [f"results/audit/{d}/{v}/seed-{s}/audit.json" for d, v, s in STUDY.runs]


rule probe_policy:
    input:
        SPLITS,
        unpack(lambda w: STUDY.probe_inputs(w.dataset, w.variant)),
        templates=PROMPT_FILES,
        ranker="results/ranker/{dataset}/states.safetensors",
        adapter=f"{RUN}/adapter",
        rankings=f"{RUN}/rankings.parquet",
    output:
        f"{AUDIT}/probes.json",
    log:
        "results/logs/audit/{dataset}/{variant}/seed-{seed}/probe.log",
    benchmark:
        "results/benchmarks/audit/{dataset}/{variant}/seed-{seed}/probe.tsv"
    conda:
        "../envs/rl.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    params:
        base=lambda w: STUDY.run_paths(w.dataset, w.variant)["base"],
        lengths=lambda w: STUDY.probe_flags(w.variant),
        roles=ROLE_FLAGS,
        sampling=flags(CONFIG.sampling),
        settings=flags(CONFIG.probe),
        roles_seed=CONFIG.seed,
        templates=lambda w, input: os.path.dirname(input.templates[0]),
        code=code_digest("shielded_recrl.audit.probe"),
    message:
        "Probe {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.audit probe --data results/data/{wildcards.dataset} "
        "--ranker {input.ranker} --base {params.base} --adapter {input.adapter} "
        "--templates {params.templates} --rankings {input.rankings} --out {output} "
        "--seed {wildcards.seed} --roles-seed {params.roles_seed} {params.lengths} "
        "{params.roles} {params.sampling} {params.settings} 2>&1 | tee {log}"


rule audit_policy:
    input:
        SPLITS,
        reviews="results/data/{dataset}/reviews.parquet",
        explanations=f"{RUN}/explanations.jsonl",
        rankings=f"{RUN}/rankings.parquet",
        probes=f"{AUDIT}/probes.json",
        scorer=STUDY.scorer_inputs(),
    output:
        f"{AUDIT}/audit.json",
    log:
        "results/logs/audit/{dataset}/{variant}/seed-{seed}/audit.log",
    benchmark:
        "results/benchmarks/audit/{dataset}/{variant}/seed-{seed}/audit.tsv"
    conda:
        "../envs/audit.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        settings=flags(CONFIG.audit),
        code=code_digest("shielded_recrl.audit.run"),
    message:
        "Audit {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.audit run --data results/data/{wildcards.dataset} "
        "--explanations {input.explanations} --rankings {input.rankings} "
        "--probes {input.probes} --out {output} --dataset {wildcards.dataset} "
        "--variant {wildcards.variant} --seed {wildcards.seed} {params.settings} 2>&1 | tee {log}"


rule summarise_audits:
    input:
        policy="resources/policy.yaml",
        audits=AUDITS,
    output:
        summary="results/audit/audit.json",
        page="results/audit/audit.md",
        pdf=report(
            "results/audit/audit.pdf",
            caption="../workflow/report/audit_pdf.rst",
            category="7. Audit",
            labels={"what": "summary of all audits, PDF"},
        ),
    log:
        "results/logs/audit/summarise.log",
    benchmark:
        "results/benchmarks/audit/summarise.tsv"
    conda:
        "../envs/audit.yaml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        code=code_digest("shielded_recrl.audit.summarise"),
    message:
        "Judge all audits by resources/policy.yaml"
    shell:
        "python -m shielded_recrl.audit summarise --policy {input.policy} --audits {input.audits} "
        "--out {output.summary} --page {output.page} --pdf {output.pdf} 2>&1 | tee {log}"


rule gate:
    input:
        "results/audit/audit.json",
    output:
        "results/audit/passed",
    log:
        "results/logs/audit/gate.log",
    benchmark:
        "results/benchmarks/audit/gate.tsv"
    conda:
        "../envs/audit.yaml"
    threads: 1
    resources:
        mem_mb=300,
    params:
        code=code_digest("shielded_recrl.audit.gate"),
    message:
        "Hold the gated variants to resources/policy.yaml"
    shell:
        "python -m shielded_recrl.audit gate --audit {input} --out {output} 2>&1 | tee {log}"
