"""The learning rate over the updates."""

from collections.abc import Callable

from w2v_attn.training.options import ScheduleOptions


def factor_of(options: ScheduleOptions, updates: int) -> Callable[[int], float]:
    """What the highest rate is multiplied by in each update, 0 to `updates`.

    Warm-up rises linearly from `start` to 1, then 1 is held, then it decays to `end`.

    Source: fairseq, optim/lr_scheduler/tri_stage_lr_scheduler.py; wav2vec 2.0, section 4.3.

    Raises:
        ValueError: shares that are none, an unknown decay.
    """
    if options.warmup < 0 or options.hold < 0 or options.warmup + options.hold > 1:
        raise ValueError(
            f"schedule: warmup and hold must be shares of all steps, got {options.warmup} and {options.hold}"
        )
    if options.decay not in ("exponential", "linear"):
        raise ValueError(f"schedule.decay must be exponential or linear, got {options.decay}")
    if options.decay == "exponential" and not options.final_scale > 0:
        raise ValueError(
            f"an exponential decay never reaches {options.final_scale}: give a schedule.final_scale above 0, or "
            "decay=linear"
        )
    warmup, hold = int(options.warmup * updates), int(options.hold * updates)
    decay = max(1, updates - warmup - hold)

    def factor(update: int) -> float:
        if update < warmup:
            return options.init_scale + (1 - options.init_scale) * update / warmup
        if update < warmup + hold:
            return 1.0
        progress = min(1.0, (update - warmup - hold) / decay)
        if options.decay == "linear":
            return 1 + (options.final_scale - 1) * progress
        return options.final_scale**progress

    return factor
