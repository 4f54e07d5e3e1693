"""lhotse's manifests of cuts, recordings and supervisions, read from their JSON lines without lhotse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2v_attn.corpus.columns import ChannelNumber
from w2v_attn.corpus.list_formats import json_lists
from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.rows import Corpus, CorpusError

CUTS = frozenset(("MonoCut", "MultiCut"))
MIXED = frozenset(("MixedCut", "PaddingCut"))


def _kind(values: Mapping[str, Any]) -> str | None:
    """Return what a manifest with such an object lists: cuts, recordings or supervisions; None: it is not lhotse's."""
    if values.get("type") in CUTS | MIXED and "id" in values:
        return "cuts"
    if isinstance(values.get("sources"), list) and "sampling_rate" in values:
        return "recordings"
    return "supervisions" if {"recording_id", "start", "duration"} <= set(values) else None


def _recognises(path: Path) -> bool:
    try:
        return json_lists.is_json(path) and _kind(json_lists.first_record(path)) is not None
    except CorpusError:
        return False  # reported by the reader of JSON


def _read(path: Path, options: ListOptions) -> Corpus:
    kind = _kind(json_lists.first_record(path))
    records = json_lists.read_records(path)
    if kind == "supervisions":
        recordings = _recordings_beside(path)
        return corpus_of((_of_supervision(record, recordings) for record in records), path, options)
    read = _of_cut if kind == "cuts" else _of_recording
    return corpus_of((read(record) for record in records), path, options)


def _of_cut(record: Record) -> Record:
    cut = record.values
    if record.reason is not None:
        return record
    if cut.get("type") in MIXED:
        return _unusable(record, f"is a {cut['type']}, which is made of several recordings: save it as audio")
    if not isinstance(cut.get("recording"), Mapping):
        return _unusable(record, f"the cut {cut.get('id')} has no recording")
    supervisions = [one for one in cut.get("supervisions") or () if isinstance(one, Mapping)]
    values = {**_source(cut["recording"], cut.get("channel")), **_supervised(supervisions), "id": cut.get("id")}
    length, start, duration = cut["recording"].get("duration"), cut.get("start") or 0.0, cut.get("duration")
    if start != 0 or duration is None or length is None or abs(duration - length) > 1e-3:
        values |= {"start": start, "duration": duration}
    return _usable(record, values)


def _of_recording(record: Record) -> Record:
    if record.reason is not None:
        return record
    return _usable(record, {**_source(record.values), "id": record.values.get("id")})


def _of_supervision(record: Record, recordings: Mapping[str, Mapping[str, Any]]) -> Record:
    values = record.values
    if record.reason is not None:
        return record
    if (recording := recordings.get(values.get("recording_id", ""))) is None:
        return _unusable(record, f"the recording {values.get('recording_id')} is not in the manifest of recordings")
    part = {"id": values.get("id"), "start": values.get("start"), "duration": values.get("duration")}
    return _usable(record, {**_source(recording, values.get("channel")), **_supervised([values]), **part})


def _supervised(supervisions: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return text, speaker and language of supervisions in the order of time."""
    ordered = sorted(supervisions, key=lambda one: one.get("start") or 0.0)
    texts = [one["text"] for one in ordered if one.get("text") is not None]
    values: dict[str, Any] = {"text": " ".join(map(str, texts))} if texts else {}
    for name in ("speaker", "language"):
        if len(found := {one[name] for one in ordered if one.get(name)}) == 1:
            values[name] = found.pop()
    return values


def _source(recording: Mapping[str, Any], channel: Any = None) -> dict[str, Any]:
    """Return the path of a recording and its channel, if it is one of several, or the reason why it cannot be read."""
    sources = [one for one in recording.get("sources") or () if isinstance(one, Mapping)]
    channels = sorted(number for one in sources for number in one.get("channels") or ())
    wanted = sorted(channel) if isinstance(channel, list) else channels if channel is None else [channel]
    if len(sources) != 1 or not sources[0].get("source"):
        return {"reason": f"the recording {recording.get('id')} has {len(sources)} sources, expected one file"}
    if wanted != channels and (len(wanted) != 1 or wanted[0] not in channels):
        return {"reason": f"selects channels {channel} of {channels}: expected one of them, or all"}
    if sources[0].get("type") not in ("file", "url"):
        kind = sources[0].get("type")
        return {
            "reason": f"the recording {recording.get('id')} is from a {kind}, which is never run: save it as a file"
        }
    one = {"channel": ChannelNumber(channels.index(wanted[0]))} if wanted != channels else {}
    return {"path": sources[0]["source"], **one}


def _usable(record: Record, values: dict[str, Any]) -> Record:
    reason = values.pop("reason", None)
    return Record(record.where, values, record.line, reason)


def _unusable(record: Record, reason: str) -> Record:
    return Record(record.where, {}, record.line, reason)


def _recordings_beside(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the recordings of the manifest beside one of supervisions, by id.

    Raises:
        CorpusError: there is no such manifest.
    """
    beside = path.with_name(path.name.replace("supervisions", "recordings"))
    if beside == path or not beside.is_file():
        expected = "recordings.jsonl" if beside == path else beside.name
        raise CorpusError(
            f"{path} lists lhotse's supervisions, whose recordings are in another manifest: expected {expected} beside "
            "it, named alike. Or name a manifest of cuts, which has both"
        )
    return {record.values["id"]: record.values for record in json_lists.read_records(beside) if "id" in record.values}


FORMAT = ListFormat("lhotse manifest", _recognises, _read)
