"""Options of fine-tuning: each class is a section of conf/finetune.yaml with the same keys."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class DataOptions:
    """The training, validation and test data; see `list_recordings` and `make_splits`.

    Attributes:
        train: A manifest, a folder or a data set, or a list of them.
        valid: Likewise; None: a part of `train`.
        test: Likewise; None: a part of `train`.
        root, columns, pattern, names: Arguments of `list_recordings`.
        valid_share, test_share, test_speakers, split_by: Arguments of `make_splits`.
        max_duration: Seconds; longer training recordings are dropped.
        channel: The channel that is read of each recording: "mean" of all, "left", "right", or a number from 0.
        balance: Repeat recordings so that every class has as many per epoch as the most common one.
    """

    train: Any  # str | list[str], of which OmegaConf has no type
    valid: Any = None
    test: Any = None
    root: str | None = None
    columns: dict[str, Any] | None = None
    pattern: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    valid_share: float = 0.1
    test_share: float = 0.0
    test_speakers: list[str] = field(default_factory=list)
    split_by: str = "recording"
    max_duration: float = 30.0
    channel: str = "mean"
    balance: bool = False


@dataclass(kw_only=True)
class CtcOptions:
    """Options of the task `ctc`.

    Attributes:
        unit: The kind of symbols, `characters` or `words`.
        vocabulary: `auto`: that of the checkpoint if it has one, else that of the training data; `data`; or the path of
            a vocab.json.
        case: `auto`: the case of the vocabulary's letters, lower for a new vocabulary; `lower`, `upper` or `keep`.
        language: An ISO 639 code, for the case of i (tr, az); None: it is derived from the texts.
        character_map: Character -> replacement, in addition to typographic characters that the vocabulary lacks.
        remove_characters: A regular expression; its matches in texts become spaces. `auto`: punctuation that the
            vocabulary lacks, or what the model was fine-tuned with.
        out_of_vocabulary: For texts with other symbols: `error` refuses the run, `drop` drops the recording.
    """

    unit: str = "characters"
    vocabulary: str = "auto"
    case: str = "auto"
    language: str | None = None
    character_map: dict[str, str] = field(default_factory=dict)
    remove_characters: str = "auto"
    out_of_vocabulary: str = "error"


@dataclass(kw_only=True)
class ClassificationOptions:
    """Options of the task `classification`.

    Attributes:
        problem_type: `auto`: that of the checkpoint's head if the labels fit it, else what the labels look like;
            `single_label_classification` (`single`), `multi_label_classification` (`multi`) or `regression`.
        threshold: The probability above which a recording has a label, for several labels.
        pooling: How frames are pooled: `mean`, `attention` or `statistics` (mean and standard deviation). None, here
            and below: as in the checkpoint's head if that is kept, else the first of these, `last` and 256.
        layers: The features that are pooled: `last`, or `weighted`, a learned weighted sum of all layers as in SUPERB.
        width: Channels of the projection before pooling.
    """

    problem_type: str = "auto"
    threshold: float = 0.5
    pooling: str | None = None
    layers: str | None = None
    width: int | None = None


@dataclass(kw_only=True)
class RegularizationOptions:
    """Values of the model's config for training, with Hugging Face's names; None keeps the checkpoint's value.

    Attributes:
        mask_time_prob, mask_feature_prob: The share of frames and channels that SpecAugment masks; 0: none.
        mask_time_length, mask_feature_length: Lengths of the spans, shortened in short recordings.
        mask_time_min_masks, mask_feature_min_masks: The minimum number of spans of each recording.
    """

    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    feat_proj_dropout: float | None = None
    final_dropout: float | None = None
    layerdrop: float | None = None
    mask_time_prob: float | None = None
    mask_time_length: int | None = None
    mask_time_min_masks: int | None = None
    mask_feature_prob: float | None = None
    mask_feature_length: int | None = None
    mask_feature_min_masks: int | None = None


@dataclass(kw_only=True)
class AugmentationOptions:
    """Random changes of training recordings, new in each epoch.

    Attributes:
        speed: Factors of which one is drawn; speed and pitch both change.
        noise: The probability of adding noise.
        snr: Minimum and maximum signal-to-noise ratio in decibels.
        noises: A folder with recordings of noise; None: white noise.
        silence: Maximum seconds of silence before and after a recording.
    """

    speed: list[float] = field(default_factory=lambda: [1.0])
    noise: float = 0.0
    snr: list[float] = field(default_factory=lambda: [15.0, 50.0])
    noises: str | None = None
    silence: float = 0.0


@dataclass(kw_only=True)
class ScheduleOptions:
    """The tri-stage learning rate schedule: warm-up, hold, decay.

    warmup=0.1 hold=0 decay=linear final_scale=0 is the usual linear schedule.

    Source: fairseq's tri-stage schedule.

    Attributes:
        warmup: Share of the steps in which the rate rises from `init_scale` × lr to lr.
        hold: Share of the steps at lr.
        decay: `exponential` or `linear`, to `final_scale` × lr, in the remaining steps.
        init_scale: Factor of the first learning rate.
        final_scale: Factor of the last learning rate.
    """

    warmup: float = 0.1
    hold: float = 0.4
    decay: str = "exponential"
    init_scale: float = 0.01
    final_scale: float = 0.05


@dataclass(kw_only=True)
class Factor:
    """Factors of learning rate and weight decay for parameters whose name matches a regular expression.

    They correspond to MATLAB's LearnRateFactor and L2Factor.
    """

    pattern: str
    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass(kw_only=True)
class OptimizerOptions:
    """Options of AdamW.

    Attributes:
        lr: The highest learning rate.
        betas, eps: As in torch.
        weight_decay: Not applied to biases and norms.
        max_grad_norm: The maximum norm of the gradient; 0: no clipping.
        layer_decay: The ratio of the learning rates of each block and the next one.
        factors: See `Factor`; several that match a name multiply.
        schedule: The learning rate schedule.
    """

    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    layer_decay: float = 1.0
    factors: list[Factor] = field(default_factory=list)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)


@dataclass(kw_only=True)
class LoraOptions:
    """Options of LoRA (peft).

    Attributes:
        rank: 0 trains all weights; otherwise low-rank updates of the projections in `targets`, and the head.
        alpha, dropout: As in peft.
        targets: Names of the projections; None: those of the attention, whatever the family calls them.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] | None = None


@dataclass(kw_only=True)
class TrainingOptions:
    """Options of the training loop.

    Attributes:
        max_steps: Steps of the optimizer.
        batch_seconds: Seconds of audio in one forward pass of one process, including padding.
        gradient_accumulation_steps: Forward passes per step.
        precision: `float32`, `bfloat16`, `float16` (mixed), or `auto`: bfloat16 on GPUs that support it, else float32.
        gradient_checkpointing: Recompute blocks in the backward to save memory.
        freeze: Parameters that are never trained: `none`, `feature_encoder` (the convolutions), `encoder` (all but the
            head), `all_but_adapters` (all but the language adapters and the head).
        new_adapters: Initialize the language adapters and their head at random instead of loading them.
        freeze_encoder_steps: The number of first steps in which only the head is trained.
        eval_steps: Steps between validations; each validation also saves a checkpoint.
        early_stopping_patience: Validations without improvement after which training stops; 0: never.
        workers: Processes that read audio; None: chosen automatically.
        fsdp: Shard the model over the processes of torchrun instead of copying it.
        lora: Low-rank updates.
    """

    max_steps: int = 1000
    batch_seconds: float = 100.0
    gradient_accumulation_steps: int = 1
    precision: str = "auto"
    gradient_checkpointing: bool = False
    freeze: str = "feature_encoder"
    new_adapters: bool = False
    freeze_encoder_steps: int = 0
    eval_steps: int = 100
    early_stopping_patience: int = 0
    workers: int | None = None
    fsdp: bool = False
    lora: LoraOptions = field(default_factory=LoraOptions)


@dataclass(kw_only=True)
class Recipe:
    """All options of a fine-tuning run.

    Attributes:
        task: The options of the task; their class selects the task.
        data: The data.
        checkpoint: The checkpoint to start from; None: random weights of the architecture in `config`.
        revision: Branch, tag or commit of a hub id.
        base_model: The base model of a PEFT adapter; None: the one that its config names.
        language: The language whose adapters are trained, for checkpoints that have adapters (MMS); None: those in the
            weights.
        config: Values of the model's config.
        backend: The attention backend.
        device: "auto", "cpu" or "cuda".
        seed: Of all random numbers.
        regularization, augmentation, optimizer, training: See their classes.
    """

    task: CtcOptions | ClassificationOptions
    data: DataOptions
    checkpoint: str | None
    revision: str | None = None
    base_model: str | None = None
    language: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    device: str = "auto"
    seed: int = 0
    regularization: RegularizationOptions = field(default_factory=RegularizationOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
