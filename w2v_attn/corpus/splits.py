"""`make_splits`: the rows to train on, to choose the best checkpoint with, and to test at the end."""

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from w2v_attn.corpus.rows import CorpusError, Row


@dataclass(frozen=True)
class Splits:
    """The rows of a fine-tuning run.

    Attributes:
        train: To train on.
        valid: To choose the best checkpoint with.
        test: To measure once, at the end.
    """

    train: tuple[Row, ...]
    valid: tuple[Row, ...]
    test: tuple[Row, ...] = ()


def make_splits(
    train: Sequence[Row],
    valid: Sequence[Row] | None,
    test: Sequence[Row] | None,
    *,
    valid_share: float = 0.1,
    test_share: float = 0.0,
    test_speakers: Sequence[str] = (),
    by: str = "recording",
    seed: int = 0,
) -> Splits:
    """Return the given splits, with validation and test rows taken from `train` where they are None.

    First come the rows whose own `split` names them, and those of `test_speakers`. Of the rest a share is drawn by
    recording or by speaker; it depends on the seed, not on the order of rows.

    Args:
        train: Rows to train on, and to draw the other splits from.
        valid: Rows of validation; None: taken from `train`.
        test: Rows of the test; None: taken from `train`.
        valid_share: Share of the recordings (or speakers) to validate on, 0 to 1.
        test_share: Share of the recordings (or speakers) to test on, 0 to 1.
        test_speakers: Speakers all of whose recordings are in the test split.
        by: "recording", or "speaker": then no speaker is in two splits.
        seed: Of the draw.

    Raises:
        CorpusError: an impossible share, an unknown speaker, or nothing is left for training or validation.
    """
    if by not in ("recording", "speaker"):
        raise CorpusError(f"split_by must be recording or speaker, got {by}")
    if not (0 <= valid_share < 1 and 0 <= test_share < 1 and valid_share + test_share < 1):
        raise CorpusError(f"valid_share and test_share must be shares of all, got {valid_share} and {test_share}")
    _check_speakers(train, test_speakers, by)
    parts: dict[str, list[Row]] = {"train": [], "valid": list(valid or ()), "test": list(test or ())}
    undecided: list[Row] = []
    has_split = {row.split for row in train}
    for row in train:
        if row.unusable_reason is not None:  # reported with the training data, and never drawn
            parts["train"].append(row)
        elif row.speaker is not None and row.speaker in test_speakers:
            parts["test"].append(row)
        elif row.split == "valid" and valid is None:
            parts["valid"].append(row)
        elif row.split == "test" and test is None:
            parts["test"].append(row)
        elif row.split not in (None, "train", "valid", "test"):
            raise CorpusError(f"{row.id} has the split {row.split!r}, expected train, valid or test")
        elif row.split in (None, "train"):
            undecided.append(row)
    wants_test = test_share if test is None and "test" not in has_split else 0.0
    wants_valid = valid_share if valid is None and "valid" not in has_split else 0.0
    drawn = _draw(undecided, {"test": wants_test, "valid": wants_valid}, by, seed)
    for row in undecided:
        parts[drawn.get(row.id, "train")].append(row)
    if all(row.unusable_reason is not None for row in parts["train"]):
        named = sum(row.split in ("valid", "test") for row in train)
        raise CorpusError(
            "nothing is left to train on: every recording is held out. Give smaller shares or more data"
            + (f". The list or its folders name {named} of {len(train)} as validation or test data" if named else "")
        )
    if not parts["valid"]:
        raise CorpusError("there is nothing to validate on: give data.valid=, or a data.valid_share above 0")
    return Splits(tuple(parts["train"]), tuple(parts["valid"]), tuple(parts["test"]))


def _check_speakers(rows: Sequence[Row], test_speakers: Sequence[str], by: str) -> None:
    rows = [row for row in rows if row.unusable_reason is None]
    speakers = {row.speaker for row in rows}
    if unknown := sorted(set(test_speakers) - speakers):
        known = ", ".join(sorted(speaker for speaker in speakers if speaker is not None)[:20]) or "none"
        raise CorpusError(f"there is no speaker {', '.join(unknown)}; speakers are {known}")
    if by == "speaker" and None in speakers:
        row = next(row for row in rows if row.speaker is None)
        raise CorpusError(f"to split by speaker, every recording needs one; {row.id} has none: give a column `speaker`")


def _draw(rows: Sequence[Row], shares: dict[str, float], by: str, seed: int) -> dict[str, str]:
    """Return id -> split of the drawn rows. Every share above 0 gets at least one recording or speaker."""
    # Rows of the same recording stay together, under the first one's id.
    first: dict[Hashable, str] = {}
    for row in rows:
        first.setdefault(row.beginning, row.id)
    unit: Callable[[Row], Hashable] = (
        (lambda row: row.speaker) if by == "speaker" else (lambda row: first[row.beginning])
    )
    members: dict[Hashable, list[str]] = defaultdict(list)
    for row in rows:
        members[unit(row)].append(row.id)
    order = sorted(members, key=str)
    random.Random(seed).shuffle(order)
    drawn: dict[str, str] = {}
    for split, share in shares.items():
        count = max(1, round(share * len(members))) if share > 0 else 0
        for name in order[:count]:
            drawn.update(dict.fromkeys(members[name], split))
        order = order[count:]
    return drawn
