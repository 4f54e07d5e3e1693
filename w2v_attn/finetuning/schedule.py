"""The learning rate over the updates."""

from collections.abc import Callable

from w2v_attn.finetuning.options import ScheduleOptions


def factor_of(options: ScheduleOptions, updates: int) -> Callable[[int], float]:
    """What the highest rate is multiplied by in each update, 0 to `updates`.

    Warm-up rises linearly from `start` to 1, then 1 is held, then it decays to `end`.

    Source: fairseq, optim/lr_scheduler/tri_stage_lr_scheduler.py; wav2vec 2.0, section 4.3.

    Raises:
        ValueError: shares that are none, an unknown decay.
    """
    if options.warm_up < 0 or options.hold < 0 or options.warm_up + options.hold > 1:
        raise ValueError(
            f"schedule: warm_up and hold must be shares of all updates, got {options.warm_up} and {options.hold}"
        )
    if options.decay not in ("exponential", "linear"):
        raise ValueError(f"schedule.decay must be exponential or linear, got {options.decay}")
    if options.decay == "exponential" and not options.end > 0:
        raise ValueError(
            f"an exponential decay never reaches {options.end}: give a schedule.end above 0, or decay=linear"
        )
    warm_up, hold = int(options.warm_up * updates), int(options.hold * updates)
    decay = max(1, updates - warm_up - hold)

    def factor(update: int) -> float:
        if update < warm_up:
            return options.start + (1 - options.start) * update / warm_up
        if update < warm_up + hold:
            return 1.0
        progress = min(1.0, (update - warm_up - hold) / decay)
        if options.decay == "linear":
            return 1 + (options.end - 1) * progress
        return options.end**progress

    return factor
