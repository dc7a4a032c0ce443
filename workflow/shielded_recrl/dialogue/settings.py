"""Settings of the dialogue stage."""

from typing import Annotated, Literal

from pydantic import Field

from shielded_recrl.explainer.settings import (
    BaseLMSettings,
    LoRAAlpha,
    LoRARank,
    SmallLMSettings,
)
from shielded_recrl.hub import Revision
from shielded_recrl.rl.settings import PPOSettings
from shielded_recrl.settings import Settings

Resamples = Annotated[int, Field(ge=10, description="Resamples of the bootstrap over dialogues.")]


class DialogueWorldSettings(Settings):
    """The embedded world: generated dialogues and comments in the true formats."""

    dialogues: int = Field(400, ge=40, description="Dialogues, of which a fifth is for testing.")
    films: int = Field(120, ge=40, le=3000, description="Films that they are about.")
    comments: int = Field(2400, ge=280, description="Comments that the emotions are learned from.")


class DialoguePrepareSettings(Settings):
    """From raw dialogues to turns, films and splits."""

    valid_share: float = Field(
        0.1, gt=0, lt=0.5, description="Share of the training dialogues kept for validation."
    )
    max_bad_share: float = Field(
        0.1, ge=0, le=1, description="Largest share of damaged dialogues before the rule fails."
    )
    min_ascii: float = Field(
        0.9, ge=0, le=1, description="Share of letters that are ASCII, at least, in English."
    )
    min_english: float = Field(
        0.35, ge=0, le=1, description="Share of words that are common English ones, at least."
    )
    max_foreign: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of words that are common ones of another language, at the most.",
    )


class DialogueDataSettings(DialoguePrepareSettings):
    """Where the dialogues come from and how they are prepared."""

    source: str = Field(
        "embedded",
        description="`embedded`, `download` (the published ReDial), or a folder or zip of its files, "
        "which may lie at `s3://bucket/key`.",
    )
    train: tuple[str, ...] = Field(
        ("train_data.jsonl",),
        description="Files to learn from: names within `source`, or absolute paths.",
    )
    test: tuple[str, ...] = Field(
        ("test_data.jsonl",), description="Files to be tested on, likewise."
    )
    movies: str = Field(
        "movies_with_mentions.csv",
        description="File of film titles: name within `source`, or path.",
    )
    genres: str | None = Field(
        None,
        description="MovieLens movies.csv with categories of films, also at `s3://bucket/key`; the "
        "embedded world has its own.",
    )


class ResponsePromptSettings(Settings):
    """The text the response LM reads: turns, emotions, recommended titles."""

    context_turns: int = Field(3, ge=1, description="Most recent turns in the prompt, at the most.")
    prompt_tokens: int = Field(
        112, ge=64, description="Longest prompt, in tokens; the oldest turns give way."
    )
    titles: int = Field(
        3, ge=0, le=10, description="Recommended titles named in the prompt, best first."
    )


class ResponseBaseSettings(SmallLMSettings):
    """The embedded base LM of responses."""

    steps: int = Field(400, ge=1, description="Training steps.")
    context_weight: float = Field(
        0.2, ge=0, description="Loss weight of a token of the turns before; the response has 1."
    )


class SuperviseSettings(Settings):
    """LoRA training of the response LM on what recommenders said."""

    lora_rank: LoRARank = 16
    lora_alpha: LoRAAlpha = 32
    steps: int = Field(160, ge=1, description="Training steps, at the most.")
    batch_size: int = Field(16, ge=1, description="Responses in a step.")
    learning_rate: float = Field(5e-3, gt=0, description="Peak AdamW learning rate.")
    evaluate_every: int = Field(40, ge=1, description="Steps between two validations.")
    patience: int = Field(
        2, ge=1, description="Validations without a lower loss after which training ends."
    )
    valid_responses: int = Field(
        128, ge=1, description="Responses of the validation, spread over the split, at the most."
    )


class ResponseSettings(BaseLMSettings, ResponsePromptSettings):
    """The response LM: base, adapter and lengths."""

    response_tokens: int = Field(32, ge=4, description="Longest response, in tokens.")
    pretrain: ResponseBaseSettings = Field(
        ResponseBaseSettings(), description="Training of the embedded base."
    )
    supervise: SuperviseSettings = Field(
        SuperviseSettings(), description="Training of the adapter before that by reward."
    )


class LLMJudgeSettings(Settings):
    """Language models that judge responses beside the embedded judges."""

    models: tuple[str, ...] = Field(
        (),
        max_length=2,
        description="Language models that judge too, by their names at the address; none by default.",
    )
    url: str = Field(
        "",
        description="OpenAI-compatible address of the models, before /chat/completions; by default "
        "that of the environment variable RECRL_JUDGE_URL. The key is read from RECRL_JUDGE_KEY.",
    )
    max_tokens: int = Field(
        96, ge=16, description="Longest answer of a model; raise it for models that think aloud."
    )
    timeout: float = Field(60.0, gt=0, description="Longest wait for a model's answer, in seconds.")


class JudgeSettings(LLMJudgeSettings):
    """Responses that are judged, and who judges them beside the embedded judges."""

    train_turns: int = Field(
        600, ge=1, description="Turns of the train split whose responses are judged, at the most."
    )
    valid_turns: int = Field(
        300, ge=1, description="The same of the valid split, which the critic's gate is of."
    )
    foreign: int = Field(
        4,
        ge=1,
        description="Responses of other dialogues that a turn is compared with, at the most: this "
        "fault is the hardest to see, so that more of them are needed.",
    )
    temperature: float = Field(1.0, gt=0, description="Temperature of sampled responses.")


class CriticTrainingSettings(Settings):
    """Training of the critic on what judges said, and the embedded encoder's size."""

    judges: tuple[str, ...] = Field(
        ("rules",), min_length=1, description="Judges whose mean score is learned; never `unseen`."
    )
    vocabulary: int = Field(1000, ge=300, description="BPE vocabulary of the embedded encoder.")
    hidden_size: int = Field(64, ge=8, description="Width of the embedded encoder.")
    layers: int = Field(2, ge=1, description="Layers of the embedded encoder.")
    heads: int = Field(4, ge=1, description="Attention heads of it; divides hidden_size.")
    context_turns: int = Field(
        2, ge=0, description="Last turns that the critic reads, at the most."
    )
    max_tokens: int = Field(96, ge=8, description="Tokens of context and response, at the most.")
    epochs: int = Field(8, ge=1, description="Passes over the judged responses, at the most.")
    patience: int = Field(
        2, ge=1, description="Epochs without a lower loss after which training ends."
    )
    stop_share: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="Share of the judged train dialogues that teach nothing and say when to stop.",
    )
    batch_size: int = Field(32, ge=1, description="Responses in a step.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak AdamW learning rate.")
    bootstrap: Resamples = 1000


class DialogueCriticSettings(CriticTrainingSettings):
    """The critic: its encoder and its training."""

    encoder: str = Field(
        "embedded", description="`embedded`, a local folder, or a hub id of an encoder."
    )
    encoder_revision: Revision = Field(
        None, description="Commit of the encoder's hub repository; needed with a hub id."
    )


class EmotionFitSettings(Settings):
    """The emotion classifier: its vectors and its fit."""

    hash_bits: int = Field(
        18, ge=8, le=24, description="Places that n-grams of each kind are hashed to: 2^hash_bits."
    )
    min_texts: int = Field(
        5, ge=1, description="Comments that an n-gram occurs in, at least; rarer ones are not read."
    )
    strength: float = Field(
        1.0, gt=0, description="Inverse of the L2 penalty on the classifier's weights."
    )
    iterations: int = Field(100, ge=1, description="Steps of the fit, at the most.")
    balance: float = Field(
        0.2,
        ge=0,
        le=1,
        description="How far rare emotions are favoured: 0 as they occur, 1 as if all were as common.",
    )


class EmotionTrainSettings(EmotionFitSettings):
    """Training of the emotion classifier on GoEmotions."""

    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="Largest share of damaged comments before the rule fails."
    )
    bootstrap: int = Field(1000, ge=10, description="Resamples of the bootstrap over comments.")


class AnnotateSettings(Settings):
    """What labels a turn with emotions, and how many of them are kept."""

    source: Literal["classifier", "lexicon"] = Field(
        "classifier", description="What labels: `classifier`, trained on GoEmotions, or `lexicon`."
    )
    at_most: int = Field(3, ge=1, le=9, description="Emotions of a turn, at the most.")
    threshold: float = Field(
        0.1, ge=0, lt=1, description="Probability above which an emotion is kept."
    )


class EmotionSettings(EmotionTrainSettings, AnnotateSettings):
    """Emotions of turns: what labels them, and what that is trained on."""

    goemotions: str = Field(
        "embedded",
        description="`embedded` (only with embedded dialogues), `download` (the published files), or "
        "a folder with train, dev and test of GoEmotions: .tsv or .tsv.gz, in `s3://bucket/key` .tsv.",
    )


class FusionSettings(Settings):
    """Stage 1 of the recommender: vectors of items and users, and the evidence beside them."""

    dim: int = Field(32, ge=2, description="Width of the vectors of items, words and users.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Dropout of the user's vector.")
    min_word_dialogues: int = Field(
        3, ge=1, description="Train dialogues that say a word, at least, for it to count."
    )
    word_decay: float = Field(
        0.9, gt=0, le=1, description="Weight of a word for each turn since it was said."
    )
    item_prior: float = Field(
        5.0, gt=0, description="Mentions that co-occurrence counts are smoothed by."
    )
    word_prior: float = Field(20.0, gt=0, description="Dialogues that word counts are smoothed by.")
    folds: int = Field(
        10, ge=2, description="Folds of train dialogues, each seen through the others' counts."
    )
    epochs: int = Field(40, ge=1, description="Epochs at the most.")
    patience: int = Field(2, ge=1, description="Epochs without a lower validation loss.")
    batch_size: int = Field(64, ge=1, description="Films held out in a batch.")
    learning_rate: float = Field(1e-2, gt=0, description="Learning rate of AdamW.")
    vector_rate: float = Field(
        0.1, ge=0, description="Learning rate of the vectors, in multiples of that of the rest."
    )
    weight_decay: float = Field(3.0, ge=0, description="Weight decay of the vectors.")
    min_recall: float = Field(
        0.2, ge=0, le=1, description="Validation recall@10 of a held-out film that must be reached."
    )
    bootstrap: Resamples = 1000


class RecommendSettings(Settings):
    """Stage 2 of the recommender: which film is named next."""

    like_weight: float = Field(
        2.0, ge=0, description="Weight in the loss of a film that the seeker liked."
    )
    dislike_weight: float = Field(1.0, ge=0, description="Weight of one that was disliked.")
    not_said_weight: float = Field(0.5, gt=0, description="Weight of one that nothing was said of.")
    epochs: int = Field(40, ge=1, description="Epochs at the most.")
    patience: int = Field(2, ge=1, description="Epochs without a lower validation loss.")
    batch_size: int = Field(64, ge=1, description="Targets in a batch.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of AdamW.")
    vector_rate: float = Field(
        0.1, ge=0, description="Learning rate of the vectors, in multiples of that of the rest."
    )
    weight_decay: float = Field(3.0, ge=0, description="Weight decay of the vectors.")
    bootstrap: Resamples = 1000


class DialogueRewardSettings(Settings):
    """Weights of the reward of a response; each component lies in [0, 1]."""

    critic: float = Field(1.0, ge=0, description="Weight of the critic's overall score.")
    format: float = Field(
        0.2, ge=0, description="Weight of whole slots, a last mark, one turn, and a fit length."
    )
    support: float = Field(
        0.2, ge=0, description="Weight of films standing in slots that a recommended film fills."
    )
    repetition: float = Field(0.5, ge=0, description="Penalty on repeated pairs of words.")
    copying: float = Field(0.5, ge=0, description="Penalty on words copied from the turns before.")
    min_words: int = Field(
        2, ge=1, description="Words beside films that the format wants, at least."
    )
    max_words: int = Field(60, ge=1, description="Words beside films, at the most.")


class DialogueRLSettings(PPOSettings):
    """PPO on responses of the recommender, from the supervised adapter on."""

    steps: int | None = Field(
        20,
        ge=1,
        description="PPO steps: one batch of responses each; null: as many as `passes` take.",
    )
    passes: int = Field(10, ge=1, description="Passes over the train turns, where `steps` is null.")
    micro_batch: int = Field(64, ge=1, description="Sequences in one forward and backward pass.")
    epochs: int = Field(2, ge=1, description="Passes over a batch of rollouts.")
    learning_rate: float = Field(2e-3, gt=0, description="Adam learning rate of the adapter.")
    kl_weight: float = Field(
        0.05,
        ge=0,
        description="Weight of the per-token KL to the supervised LM inside the reward.",
    )
    value_learning_rate: float = Field(
        5e-2, gt=0, description="Adam learning rate of the value critic."
    )
    clip_value: float = Field(
        1.0, gt=0, description="Clipping of the value around its old estimate."
    )
    lora_rank: LoRARank = Field(16, description="Rank of the adapter over the supervised LM.")
    lora_alpha: LoRAAlpha = 32
    reward: DialogueRewardSettings = Field(
        DialogueRewardSettings(), description="Weights of the reward."
    )


class DialogueEvaluationSettings(LLMJudgeSettings):
    """The comparison of supervised, best-of-N and RL responses on test turns, and who judges it."""

    test_turns: int = Field(
        300, ge=2, description="Test turns that are answered, evenly over the split, at the most."
    )
    best_of: int = Field(
        4, ge=2, description="N: samples of which the critic picks one in best-of-N."
    )
    temperature: float = Field(
        1.0, gt=0, description="Sampling temperature; that of training shows what was trained."
    )
    bootstrap: Resamples = 1000


class DialogueSettings(Settings):
    """The dialogue branch: data, recommender, response LM, critic and RL."""

    data: DialogueDataSettings = Field(DialogueDataSettings(), description="Dialogues.")
    world: DialogueWorldSettings = Field(DialogueWorldSettings(), description="The embedded world.")
    emotions: EmotionSettings = Field(EmotionSettings(), description="Emotions of turns.")
    fusion: FusionSettings = Field(
        FusionSettings(), description="Stage 1: emotional semantic fusion."
    )
    recommend: RecommendSettings = Field(
        RecommendSettings(), description="Stage 2: emotion-aware recommendation."
    )
    response: ResponseSettings = Field(
        ResponseSettings(), description="Stage 3: the response LM, trained on what was said."
    )
    judge: JudgeSettings = Field(JudgeSettings(), description="Responses and their judges.")
    critic: DialogueCriticSettings = Field(
        DialogueCriticSettings(), description="The multi-head critic."
    )
    rl: DialogueRLSettings = Field(DialogueRLSettings(), description="PPO on responses.")
    evaluation: DialogueEvaluationSettings = Field(
        DialogueEvaluationSettings(), description="Supervised, best-of-N and RL compared."
    )
    seeds: tuple[int, ...] = Field(
        (42, 43, 44), min_length=1, description="Seeds of PPO runs, each compared by itself."
    )
