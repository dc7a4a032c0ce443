# REQUIRED INPUTS: none (embedded), a download, or the user's raw files
# OUTPUTS: results/dialogue/: tables, emotions, recommender, response LM, critic, PPO runs, comparison, manifest
# A branch of its own, apart from the default target: snakemake --cores 2 results/dialogue/report/manifest.json

DIALOGUE = "results/dialogue"
DIALOGUE_TABLES = expand(
    f"{DIALOGUE}/data/{{name}}.parquet",
    name=["dialogues", "turns", "mentions", "feedback", "items"],
)
SUPERVISED = f"{DIALOGUE}/response/supervised"
POLICY = f"{DIALOGUE}/rl/seed-{{seed}}"
RESPONSE = CONFIG.dialogue.response
RESPONSE_PROMPT = flags(section(RESPONSE, ResponsePromptSettings))
RESPONSE_LENGTHS = (
    f"{RESPONSE_PROMPT} --response-tokens {RESPONSE.response_tokens} "
    f"--precision {RESPONSE.precision}"
)
# What the manifest lists beside the report, as `ARTEFACTS` in report.smk.
EMBEDDED_FOLDERS = {
    f"{DIALOGUE}/raw": CONFIG.dialogue.data.source,
    f"{DIALOGUE}/response/base": RESPONSE.base,
}
DIALOGUE_ARTEFACTS = [
    *(folder for folder, source in EMBEDDED_FOLDERS.items() if source == "embedded"),
    *DIALOGUE_TABLES,
    *(f"{DIALOGUE}/data/{name}" for name in ["stats.json", "quarantine.jsonl"]),
    *(f"{os.path.dirname(model)}/report.json" for model in BRANCH.emotion_inputs().values()),
    *BRANCH.emotion_inputs().values(),
    f"{DIALOGUE}/emotion/turns.parquet",
    *(f"{DIALOGUE}/fusion/{name}" for name in ["model.safetensors", "report.json"]),
    *(
        f"{DIALOGUE}/recommender/{name}"
        for name in [
            "model.safetensors",
            "evaluation.json",
            "evaluation.md",
            "recommendations.parquet",
        ]
    ),
    SUPERVISED,
    f"{DIALOGUE}/response/supervise.jsonl",
    *(f"{DIALOGUE}/critic/{name}" for name in ["judged.parquet", "model", "report.json"]),
    *expand(
        f"{POLICY}/{{name}}",
        seed=CONFIG.dialogue.seeds,
        name=[
            "adapter",
            "train.jsonl",
            "summary.json",
            "evaluation.json",
            "responses.jsonl",
        ],
    ),
]


rule make_dialogues:
    output:
        directory(f"{DIALOGUE}/raw"),
    log:
        "results/logs/dialogue/make.log",
    benchmark:
        "results/benchmarks/dialogue/make.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
    params:
        settings=flags(CONFIG.dialogue.world),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.make"),
    message:
        "Make the embedded world of dialogues"
    shell:
        "python -m shielded_recrl.dialogue make --out {output} --seed {params.seed} "
        "{params.settings} 2>&1 | tee {log}"


rule prepare_dialogues:
    input:
        **placed(BRANCH.raw_inputs()),
    output:
        DIALOGUE_TABLES,
        stats=f"{DIALOGUE}/data/stats.json",
        quarantine=f"{DIALOGUE}/data/quarantine.jsonl",
    log:
        "results/logs/dialogue/prepare.log",
    benchmark:
        "results/benchmarks/dialogue/prepare.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
        runtime=240,
    params:
        settings=lambda w, input: BRANCH.prepare_flags(dict(input.items())),
        out=subpath(output.stats, parent=True),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.prepare"),
    message:
        "Prepare dialogues: turns, mentions, feedback, films, splits"
    shell:
        "python -m shielded_recrl.dialogue prepare --out {params.out} --seed {params.seed} "
        "{params.settings} 2>&1 | tee {log}"


rule train_emotions:
    input:
        comments=placed(BRANCH.comment_inputs()),
    output:
        model=f"{DIALOGUE}/emotion/model.safetensors",
        report=f"{DIALOGUE}/emotion/report.json",
    log:
        "results/logs/dialogue/emotions.log",
    benchmark:
        "results/benchmarks/dialogue/emotions.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=240,
    params:
        comments=lambda w, input: BRANCH.comment_folder(input.comments),
        out=subpath(output.model, parent=True),
        settings=flags(section(CONFIG.dialogue.emotions, EmotionTrainSettings)),
        code=code_digest("shielded_recrl.dialogue.emotions"),
    message:
        "Train the emotion classifier"
    shell:
        "python -m shielded_recrl.dialogue emotions --goemotions {params.comments:q} "
        "--out {params.out} {params.settings} 2>&1 | tee {log}"


rule annotate_emotions:
    input:
        **BRANCH.emotion_inputs(),
        tables=DIALOGUE_TABLES,
    output:
        f"{DIALOGUE}/emotion/turns.parquet",
    log:
        "results/logs/dialogue/annotate.log",
    benchmark:
        "results/benchmarks/dialogue/annotate.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: 1
    resources:
        mem_mb=grown(1500),
        runtime=240,
    params:
        data=tables_folder,
        model=lambda w, input: emotion_model(input, "model"),
        settings=flags(section(CONFIG.dialogue.emotions, AnnotateSettings)),
        code=code_digest("shielded_recrl.dialogue.annotate"),
    message:
        "Label every turn with emotions"
    shell:
        "python -m shielded_recrl.dialogue annotate --data {params.data} {params.model} "
        "--out {output} {params.settings} 2>&1 | tee {log}"


rule fuse_items:
    input:
        tables=DIALOGUE_TABLES,
        emotion=f"{DIALOGUE}/emotion/turns.parquet",
    output:
        model=f"{DIALOGUE}/fusion/model.safetensors",
        report=f"{DIALOGUE}/fusion/report.json",
    log:
        "results/logs/dialogue/fuse.log",
    benchmark:
        "results/benchmarks/dialogue/fuse.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=240,
    params:
        data=tables_folder,
        out=subpath(output.model, parent=True),
        settings=flags(CONFIG.dialogue.fusion),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.fuse"),
    message:
        "Stage 1: fuse text, metadata, co-occurrence and emotions of films"
    shell:
        "python -m shielded_recrl.dialogue fuse --data {params.data} --emotions {input.emotion} "
        "--out {params.out} --seed {params.seed} {params.settings} 2>&1 | tee {log}"


rule train_recommender:
    input:
        tables=DIALOGUE_TABLES,
        emotion=f"{DIALOGUE}/emotion/turns.parquet",
        fusion=f"{DIALOGUE}/fusion/model.safetensors",
    output:
        model=f"{DIALOGUE}/recommender/model.safetensors",
        evaluation=f"{DIALOGUE}/recommender/evaluation.json",
        page=f"{DIALOGUE}/recommender/evaluation.md",
        recommendations=f"{DIALOGUE}/recommender/recommendations.parquet",
    log:
        "results/logs/dialogue/recommend.log",
    benchmark:
        "results/benchmarks/dialogue/recommend.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=240,
    params:
        data=tables_folder,
        fusion=subpath(input.fusion, parent=True),
        out=subpath(output.model, parent=True),
        settings=flags(CONFIG.dialogue.recommend),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.recommend"),
    message:
        "Stage 2: train and evaluate the emotion-aware recommender"
    shell:
        "python -m shielded_recrl.dialogue recommend --data {params.data} "
        "--emotions {input.emotion} --fusion {params.fusion} --out {params.out} "
        "--seed {params.seed} {params.settings} 2>&1 | tee {log}"


rule pretrain_dialogue:
    input:
        tables=DIALOGUE_TABLES,
    output:
        directory(f"{DIALOGUE}/response/base"),
    log:
        "results/logs/dialogue/pretrain.log",
    benchmark:
        "results/benchmarks/dialogue/pretrain.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=tables_folder,
        settings=flags(CONFIG.dialogue.response.pretrain),
        prompt=RESPONSE_PROMPT,
        tokens=CONFIG.dialogue.response.response_tokens,
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.pretrain"),
    message:
        "Train the embedded base LM of responses"
    shell:
        "python -m shielded_recrl.dialogue pretrain --data {params.data} --out {output} "
        "--seed {params.seed} --response-tokens {params.tokens} {params.prompt} "
        "{params.settings} 2>&1 | tee {log}"


rule supervise:
    input:
        tables=DIALOGUE_TABLES,
        base=placed(BRANCH.model_inputs(BRANCH.base_folder())),
        emotion=f"{DIALOGUE}/emotion/turns.parquet",
        recommendations=f"{DIALOGUE}/recommender/recommendations.parquet",
    output:
        adapter=directory(SUPERVISED),
        curve=f"{DIALOGUE}/response/supervise.jsonl",
    log:
        "results/logs/dialogue/supervise.log",
    benchmark:
        "results/benchmarks/dialogue/supervise.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=tables_folder,
        base=response_base,
        settings=flags(CONFIG.dialogue.response.supervise),
        lengths=RESPONSE_LENGTHS,
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.supervise"),
    message:
        "Stage 3: train the response adapter on what recommenders said"
    shell:
        "python -m shielded_recrl.dialogue supervise --data {params.data} "
        "--emotion {input.emotion} --recommendations {input.recommendations} "
        "--base {params.base} --out {output.adapter} --log {output.curve} "
        "--seed {params.seed} {params.lengths} {params.settings} 2>&1 | tee {log}"


rule judge_responses:
    input:
        tables=DIALOGUE_TABLES,
        base=placed(BRANCH.model_inputs(BRANCH.base_folder())),
        emotion=f"{DIALOGUE}/emotion/turns.parquet",
        recommendations=f"{DIALOGUE}/recommender/recommendations.parquet",
        adapter=SUPERVISED,
    output:
        f"{DIALOGUE}/critic/judged.parquet",
    log:
        "results/logs/dialogue/judge.log",
    benchmark:
        "results/benchmarks/dialogue/judge.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=tables_folder,
        base=response_base,
        settings=flags(CONFIG.dialogue.judge),
        lengths=RESPONSE_LENGTHS,
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.judge"),
    message:
        "Judge gold, sampled and corrupted responses"
    shell:
        "python -m shielded_recrl.dialogue judge --data {params.data} "
        "--emotion {input.emotion} --recommendations {input.recommendations} "
        "--base {params.base} --adapter {input.adapter} --out {output} "
        "--scratch results/scratch/dialogue/judge "
        "--seed {params.seed} {params.lengths} {params.settings} 2>&1 | tee {log}"


rule train_critic:
    input:
        tables=DIALOGUE_TABLES,
        judged=f"{DIALOGUE}/critic/judged.parquet",
        encoder=placed(BRANCH.model_inputs(BRANCH.encoder_folder())),
    output:
        model=directory(f"{DIALOGUE}/critic/model"),
        report=f"{DIALOGUE}/critic/report.json",
    log:
        "results/logs/dialogue/critic.log",
    benchmark:
        "results/benchmarks/dialogue/critic.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=tables_folder,
        encoder=critic_encoder,
        settings=flags(section(CONFIG.dialogue.critic, CriticTrainingSettings)),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.critic"),
    message:
        "Train the multi-head critic on what the judges said"
    shell:
        "python -m shielded_recrl.dialogue critic --judged {input.judged} --data {params.data} "
        "{params.encoder} --out {output.model} --report {output.report} --seed {params.seed} "
        "{params.settings} 2>&1 | tee {log}"


rule train_responses:
    input:
        tables=DIALOGUE_TABLES,
        base=placed(BRANCH.model_inputs(BRANCH.base_folder())),
        emotion=f"{DIALOGUE}/emotion/turns.parquet",
        recommendations=f"{DIALOGUE}/recommender/recommendations.parquet",
        supervised=SUPERVISED,
        critic=f"{DIALOGUE}/critic/model",
    output:
        adapter=directory(f"{POLICY}/adapter"),
        curve=f"{POLICY}/train.jsonl",
        summary=f"{POLICY}/summary.json",
    log:
        "results/logs/dialogue/rl/seed-{seed}/train.log",
    benchmark:
        "results/benchmarks/dialogue/rl/seed-{seed}/train.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=tables_folder,
        base=response_base,
        out=subpath(output.curve, parent=True),
        settings=flags(CONFIG.dialogue.rl),
        lengths=RESPONSE_LENGTHS,
        code=code_digest("shielded_recrl.dialogue.train"),
    message:
        "Train responses with PPO, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.dialogue train --data {params.data} "
        "--emotion {input.emotion} --recommendations {input.recommendations} "
        "--base {params.base} --supervised {input.supervised} --reward-critic {input.critic} "
        "--out {params.out} --scratch results/scratch/dialogue/seed-{wildcards.seed} "
        "--live results/live/dialogue/seed-{wildcards.seed} --seed {wildcards.seed} "
        "{params.lengths} {params.settings} 2>&1 | tee {log}"


rule evaluate_responses:
    input:
        **BRANCH.emotion_inputs(),
        tables=DIALOGUE_TABLES,
        stats=f"{DIALOGUE}/data/stats.json",
        base=placed(BRANCH.model_inputs(BRANCH.base_folder())),
        emotion=f"{DIALOGUE}/emotion/turns.parquet",
        recommendations=f"{DIALOGUE}/recommender/recommendations.parquet",
        supervised=SUPERVISED,
        critic=f"{DIALOGUE}/critic/model",
        critic_report=f"{DIALOGUE}/critic/report.json",
        adapter=f"{POLICY}/adapter",
        curve=f"{POLICY}/train.jsonl",
        summary=f"{POLICY}/summary.json",
    output:
        evaluation=f"{POLICY}/evaluation.json",
        responses=f"{POLICY}/responses.jsonl",
    log:
        "results/logs/dialogue/rl/seed-{seed}/evaluate.log",
    benchmark:
        "results/benchmarks/dialogue/rl/seed-{seed}/evaluate.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=tables_folder,
        base=response_base,
        run=subpath(output.evaluation, parent=True),
        model=lambda w, input: emotion_model(input, "emotion-model"),
        labels=flags(section(CONFIG.dialogue.emotions, AnnotateSettings), prefix="labels."),
        settings=flags(CONFIG.dialogue.evaluation),
        lengths=RESPONSE_LENGTHS,
        # Every training answers with the same random numbers, so that they differ by what they learned.
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.evaluate"),
    message:
        "Compare supervised, best-of-N and RL responses, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.dialogue evaluate --data {params.data} "
        "--emotion {input.emotion} --recommendations {input.recommendations} "
        "--base {params.base} --supervised {input.supervised} --reward-critic {input.critic} "
        "--critic-report {input.critic_report} --run {params.run} "
        "--scratch results/scratch/dialogue/evaluate/seed-{wildcards.seed} {params.model} "
        "--seed {params.seed} {params.lengths} {params.labels} {params.settings} 2>&1 | tee {log}"


rule report_dialogue:
    input:
        evaluations=expand(f"{POLICY}/evaluation.json", seed=CONFIG.dialogue.seeds),
        responses=expand(f"{POLICY}/responses.jsonl", seed=CONFIG.dialogue.seeds),
        curves=expand(f"{POLICY}/train.jsonl", seed=CONFIG.dialogue.seeds),
        recommender=f"{DIALOGUE}/recommender/evaluation.json",
        critic=f"{DIALOGUE}/critic/report.json",
    output:
        expand(
            f"{DIALOGUE}/report/{{name}}.svg",
            name=["differences", "training", "critic", "recommender"],
        ),
        markdown=f"{DIALOGUE}/report/comparison.md",
        html=f"{DIALOGUE}/report/comparison.html",
        samples=f"{DIALOGUE}/report/samples.md",
    log:
        "results/logs/dialogue/report.log",
    benchmark:
        "results/benchmarks/dialogue/report.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
    params:
        runs=lambda w, input: folders(input.evaluations),
        out=subpath(output.markdown, parent=True),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.dialogue.report"),
    message:
        "Write the comparison of responses"
    shell:
        "python -m shielded_recrl.dialogue report --runs {params.runs} "
        "--recommender {input.recommender} --critic {input.critic} --out {params.out} "
        "--seed {params.seed} 2>&1 | tee {log}"


rule manifest_dialogue:
    input:
        rules.report_dialogue.output,
        DIALOGUE_ARTEFACTS if STORAGE else [],
    output:
        f"{DIALOGUE}/report/manifest.json",
    log:
        "results/logs/dialogue/manifest.log",
    benchmark:
        "results/benchmarks/dialogue/manifest.tsv"
    conda:
        "../envs/dialogue.yaml"
    threads: 1
    resources:
        mem_mb=grown(300),
        # No parameter: what was made with other threads is not made again, nor said to be.
        lm_threads=LM_THREADS,
    params:
        results=subpath(output[0], ancestor=2),
        config=CONFIG.model_dump_json(include={"seed", "dialogue"}),
        code=code_digest("shielded_recrl.dialogue.manifest"),
    message:
        "List every artefact of the branch with its checksum in results/dialogue/report/manifest.json"
    shell:
        "python -m shielded_recrl.dialogue manifest --results {params.results} "
        "--config <(printf '%s' {params.config:q}) --threads {resources.lm_threads} "
        "--out {output} 2>&1 | tee {log}"
