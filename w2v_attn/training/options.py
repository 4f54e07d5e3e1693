"""What a recipe may say. Each class is a section of conf/finetune.yaml, with the same names."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class DataOptions:
    """Where recordings come from; see `list_recordings` for what may be named, `make_splits` for how they are split.

    train, valid, test: a manifest, a folder, a data set. valid, test: None takes them out of `train`.
    root, pattern, names: of `list_recordings`. The rest: of `make_splits`.
    max_duration: seconds; a longer recording is dropped.
    balance: in each pass over the data every class has as many recordings as the most common one, by repeating its own.
    """

    train: str
    valid: str | None = None
    test: str | None = None
    root: str | None = None
    pattern: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    valid_share: float = 0.1
    test_share: float = 0.0
    test_speakers: list[str] = field(default_factory=list)
    split_by: str = "recording"
    max_duration: float = 30.0
    balance: bool = False


@dataclass(kw_only=True)
class CtcOptions:
    """unit: what a symbol is, `characters` or `words`.

    vocabulary: `auto` is the checkpoint's own, where it has one, else that of the training data; `data`; or a
    vocab.json.
    case: `auto` is that of the vocabulary's letters, lower where it is made; `lower`, `upper`, `keep`.
    remove_characters: a regular expression; what it matches in a text becomes a space.
    out_of_vocabulary: what becomes of a recording whose text has other symbols: `error` refuses the run, `drop` drops
    the recording.
    """

    unit: str = "characters"
    vocabulary: str = "auto"
    case: str = "auto"
    remove_characters: str = ""
    out_of_vocabulary: str = "error"


@dataclass(kw_only=True)
class ClassificationOptions:
    """pooling: of frames, `mean`, `attention` or `statistics` (mean and deviation).

    layers: what is pooled: `last`, or `weighted`: a learned weighted sum of all, as in SUPERB.
    width: channels that frames are projected to before they are pooled.
    """

    pooling: str = "mean"
    layers: str = "last"
    width: int = 256


@dataclass(kw_only=True)
class RegularizationOptions:
    """Values of the model's config that training changes; None is what the checkpoint says. Names are Hugging Face's.

    mask_time_prob, mask_feature_prob: SpecAugment's share of frames and channels; 0 masks none. The spans' lengths are
    in frames and channels, and clamped to short recordings. min_masks: spans of each recording at least, whatever the
    share; in short recordings they decide.
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
    """How recordings are changed before the model hears them, each time anew.

    speed: factors of which one is drawn (speed and pitch change together). noise: probability that noise is added.
    snr: least and greatest ratio of speech to noise in decibel. noises: a folder of recordings; None is white noise.
    silence: seconds of it, at most, before and after.
    """

    speed: list[float] = field(default_factory=lambda: [1.0])
    noise: float = 0.0
    snr: list[float] = field(default_factory=lambda: [15.0, 50.0])
    noises: str | None = None
    silence: float = 0.0


@dataclass(kw_only=True)
class ScheduleOptions:
    """The learning rate over the steps: warm up, hold, decay. Shares of all steps; what is left of 1 is decay.

    warmup: from `init_scale` × lr to lr. hold: at lr. decay: `exponential` or `linear` to `final_scale` × lr.
    Source: the authors' tri-stage schedule (fairseq); warmup=0.1 hold=0 decay=linear final_scale=0 is the usual linear
    one.
    """

    warmup: float = 0.1
    hold: float = 0.4
    decay: str = "exponential"
    init_scale: float = 0.01
    final_scale: float = 0.05


@dataclass(kw_only=True)
class Factor:
    """For parameters whose name matches the regular expression: factors on learning rate and weight decay.

    MATLAB's LearnRateFactor and L2Factor.
    """

    pattern: str
    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass(kw_only=True)
class OptimizerOptions:
    """AdamW. lr: the highest learning rate. max_grad_norm: the gradient's norm at most; 0 does not clip.

    weight_decay: not applied to biases and norms. layer_decay: the learning rate of each block is this times that of
    the block above.
    factors: see `Factor`; several that match a name multiply.
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
    """rank: 0 trains all weights; above, low-rank updates of the projections in `targets` (by peft), and the head."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])


@dataclass(kw_only=True)
class TrainingOptions:
    """How long, and on how much at a time.

    max_steps: steps of the optimizer. batch_seconds: audio of one forward pass of one process, padding included.
    gradient_accumulation_steps: forward passes of one step.
    precision: `float32`, `bfloat16`, `float16` (mixed), or `auto`: bfloat16 on a GPU that has it, else float32.
    freeze: what is never trained: `none`, `feature_encoder` (the convolutions), `encoder` (all but the head),
    `all_but_adapters` (all but the adapters of the language, and the head).
    new_adapters: the adapters of the language, and its head, start anew instead of from the checkpoint's.
    freeze_encoder_steps: the first steps, in which only the head is trained.
    eval_steps: steps between validations; each is also a checkpoint. early_stopping_patience: validations without a
    better one after which training ends; 0 never ends it. workers: processes that read audio; None chooses.
    fsdp: shards the model over the processes of torchrun instead of copying it.
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
    """All of it. task: the options of the chosen one, their class says which.

    checkpoint: what to start from; None starts from random weights of the architecture in `config`.
    language: whose adapters are trained, where the checkpoint has some (MMS); None: those that its weights hold.
    """

    task: CtcOptions | ClassificationOptions
    data: DataOptions
    checkpoint: str | None
    revision: str | None = None
    language: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    device: str = "auto"
    seed: int = 0
    regularization: RegularizationOptions = field(default_factory=RegularizationOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
