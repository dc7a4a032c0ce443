# REQUIRED INPUTS: a run with its evaluation, the base LM, ranker states, results/data/{dataset}, resources/policy.yaml
# OUTPUTS: results/audit/{dataset}/{variant}/seed-{seed}/{probes,audit}.json, results/audit/{audit.json,audit.md,audit.pdf,passed}

AUDIT = "results/audit/{dataset}/{variant}/seed-{seed}"
# Of `resources.shards` above 1, each job of `ask_probes` has the LM answer some of the probes, and each
# of `score_texts` has a classifier judge some of the texts.
AUDITS = [f"results/audit/{d}/{v}/seed-{s}/audit.json" for d, v, s in STUDY.runs]


rule ask_probes:
    input:
        unpack(lambda w: placed(STUDY.probe_inputs(w.dataset, w.variant))),
        splits=SPLITS,
        ranker="results/ranker/{dataset}/states.safetensors",
        adapter=f"{RUN}/adapter",
        rankings=f"{RUN}/rankings.parquet",
    output:
        temp(f"{AUDIT}/answers/shard-{{shard,[0-9]+}}-of-{{shards,[0-9]+}}.json"),
    log:
        "results/logs/audit/{dataset}/{variant}/seed-{seed}/answers/shard-{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/audit/{dataset}/{variant}/seed-{seed}/answers/shard-{shard}-of-{shards}.tsv"
    conda:
        "../envs/rl.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=data_folder,
        base=base_folder,
        lengths=lambda w: STUDY.probe_flags(w.variant),
        roles=ROLE_FLAGS,
        sampling=flags(CONFIG.sampling),
        settings=flags(CONFIG.probe),
        roles_seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.audit.probe"),
    message:
        "Ask probes of {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}, "
        "shard {wildcards.shard} of {wildcards.shards}"
    shell:
        "python -m shielded_recrl.audit probe --data {params.data} "
        "--ranker {input.ranker} --base {params.base} --adapter {input.adapter} "
        "--templates {params.templates} --rankings {input.rankings} --out {output} "
        "--shard {wildcards.shard} --shards {wildcards.shards} "
        "--seed {wildcards.seed} --roles-seed {params.roles_seed} {params.lengths} "
        "{params.roles} {params.sampling} {params.settings} 2>&1 | tee {log}"


rule probe_policy:
    input:
        unpack(lambda w: placed(STUDY.probe_inputs(w.dataset, w.variant))),
        unpack(lambda w: STUDY.answer_parts(w.dataset, w.variant, w.seed)),
        splits=SPLITS,
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
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        # What shards answered is joined without the LM.
        gpu=LM_GPU if CONFIG.resources.shards == 1 else 0,
    params:
        data=data_folder,
        base=base_folder,
        lengths=lambda w: STUDY.probe_flags(w.variant),
        parts=lambda w, input: given(input, "parts"),
        roles=ROLE_FLAGS,
        sampling=flags(CONFIG.sampling),
        settings=flags(CONFIG.probe),
        roles_seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.audit.probe"),
    message:
        "Probe {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.audit probe --data {params.data} "
        "--ranker {input.ranker} --base {params.base} --adapter {input.adapter} "
        "--templates {params.templates} --rankings {input.rankings} --out {output} {params.parts} "
        "--seed {wildcards.seed} --roles-seed {params.roles_seed} {params.lengths} "
        "{params.roles} {params.sampling} {params.settings} 2>&1 | tee {log}"


rule score_texts:
    input:
        splits=SPLITS,
        reviews="results/data/{dataset}/reviews.parquet",
        explanations=f"{RUN}/explanations.jsonl",
        probes=f"{AUDIT}/probes.json",
        scorer=placed(STUDY.scorer_inputs()),
    output:
        temp(f"{AUDIT}/scores/shard-{{shard,[0-9]+}}-of-{{shards,[0-9]+}}.json"),
    log:
        "results/logs/audit/{dataset}/{variant}/seed-{seed}/scores/shard-{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/audit/{dataset}/{variant}/seed-{seed}/scores/shard-{shard}-of-{shards}.tsv"
    conda:
        "../envs/rl.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=240,
    params:
        data=data_folder,
        settings=flags(section(CONFIG.audit, ScorerSettings)),
        baseline_texts=CONFIG.audit.baseline_texts,
        code=code_digest("shielded_recrl.audit.score"),
    message:
        "Score texts of {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}, "
        "shard {wildcards.shard} of {wildcards.shards}"
    shell:
        "python -m shielded_recrl.audit score --data {params.data} "
        "--explanations {input.explanations} --probes {input.probes} --out {output} "
        "--shard {wildcards.shard} --shards {wildcards.shards} --seed {wildcards.seed} "
        "--baseline-texts {params.baseline_texts} {params.settings} 2>&1 | tee {log}"


rule audit_policy:
    input:
        unpack(lambda w: STUDY.score_parts(w.dataset, w.variant, w.seed)),
        splits=SPLITS,
        reviews="results/data/{dataset}/reviews.parquet",
        explanations=f"{RUN}/explanations.jsonl",
        rankings=f"{RUN}/rankings.parquet",
        probes=f"{AUDIT}/probes.json",
        scorer=placed(STUDY.scorer_inputs()),
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
        mem_mb=grown(1000),
        runtime=240,
    params:
        data=data_folder,
        settings=flags(CONFIG.audit),
        parts=lambda w, input: given(input, "parts"),
        code=code_digest("shielded_recrl.audit.run"),
    message:
        "Audit {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.audit run --data {params.data} "
        "--explanations {input.explanations} --rankings {input.rankings} "
        "--probes {input.probes} --out {output} {params.parts} --dataset {wildcards.dataset} "
        "--variant {wildcards.variant} --seed {wildcards.seed} {params.settings} 2>&1 | tee {log}"


rule summarise_audits:
    input:
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
        mem_mb=grown(500),
    params:
        policy="resources/policy.yaml",
        thresholds=content("resources/policy.yaml"),
        code=code_digest("shielded_recrl.audit.summarise"),
    message:
        "Judge all audits by resources/policy.yaml"
    shell:
        "python -m shielded_recrl.audit summarise --policy {params.policy} --audits {input.audits} "
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
        mem_mb=grown(300),
    params:
        code=code_digest("shielded_recrl.audit.gate"),
    message:
        "Hold the gated variants to resources/policy.yaml"
    shell:
        "python -m shielded_recrl.audit gate --audit {input} --out {output} 2>&1 | tee {log}"
