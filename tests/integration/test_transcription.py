"""Transcripts equal those of stock transformers for each recording alone, with times, in the usual formats."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import SPEECH, TINY, save, tiny_model

from w2v_attn import read_audio
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError
from w2v_attn.transcription import transcription_run
from w2v_attn.transcription.formats.subtitle_files import as_srt, as_vtt
from w2v_attn.transcription.load_recognizer import load_recognizer
from w2v_attn.transcription.outputs import Label, Transcript, Word
from w2v_attn.transcription.transcription_run import annotation_of, transcribe_corpus


@pytest.fixture(scope="module")
def recognizer():
    return load_recognizer(TINY)


def stock_text(folder, wave):
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

    processor, model = Wav2Vec2Processor.from_pretrained(folder), Wav2Vec2ForCTC.from_pretrained(folder).eval()
    values = processor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        return processor.batch_decode(model(values).logits.argmax(-1))[0]


def test_the_text_is_stocks_on_every_clip(recognizer, clips):
    for path, _ in clips[:12]:
        wave = read_audio(path)
        assert recognizer.recognize(wave).text == stock_text(TINY, wave)


def test_the_bundled_checkpoint_transcribes_voices_it_was_not_trained_on(recognizer, clips):
    import jiwer

    heard = [recognizer.recognize(read_audio(path)).text for path, _ in clips]
    assert jiwer.wer([text for _, text in clips], heard) < 0.15


def test_words_have_their_times_in_order_inside_the_recording(recognizer, clips):
    for path, _ in clips[:12]:
        wave = read_audio(path)
        found = recognizer.recognize(wave)
        assert " ".join(word.word for word in found.words) == found.text
        assert 0 < found.score <= 1
        before = 0.0
        for word in found.words:
            assert before <= word.start < word.end <= len(wave) / 16_000
            assert 0 < word.score <= 1
            before = word.end


def test_times_follow_the_sound(recognizer, clips):
    """The same words a second later have times a second later."""
    wave = read_audio(clips[10][0])
    first = recognizer.recognize(wave)
    later = recognizer.recognize(torch.cat([torch.zeros(16_000), wave]))
    assert [w.word for w in later.words] == [w.word for w in first.words]
    for a, b in zip(first.words, later.words, strict=True):
        assert b.start - a.start == pytest.approx(1.0, abs=0.06)


def test_a_classifier_gives_the_labels_of_its_config(tmp_path):
    from transformers import AutoModelForAudioClassification

    names = {0: "down", 1: "left", 2: "up"}
    folder = save(tiny_model("wav2vec2-group", "ForSequenceClassification", id2label=names), tmp_path / "m")
    wave = torch.randn(5000)
    found = load_recognizer(folder).recognize(wave)
    assert isinstance(found, Label)
    with torch.no_grad():
        wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
        stock = AutoModelForAudioClassification.from_pretrained(folder).eval()(wave[None]).logits.softmax(-1)[0]
    assert found.label == names[stock.argmax().item()]
    assert found.scores == {
        names[i]: pytest.approx(stock[i].item(), abs=1e-3) for i in stock.argsort(descending=True).tolist()
    }


@pytest.mark.parametrize("head", ["Model", "ForPreTraining"])
def test_a_checkpoint_without_a_head_for_text_or_labels_is_an_error(head, tmp_path):
    with pytest.raises(CheckpointError, match="neither text nor a label"):
        load_recognizer(save(tiny_model("wav2vec2-group", head), tmp_path / "m"))


def test_a_ctc_head_without_a_vocabulary_is_an_error(group_checkpoint):
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        load_recognizer(group_checkpoint)


WORDS = (Word("one", 0.1, 0.5, 0.9), Word("two", 0.6, 61.25, 0.8), Word("three", 3723.5, 3724.0, 0.7))
SPOKEN = Transcript("one two three", 0.9, WORDS)


def written(transcript, render, **about):
    """A file about a recording with this transcript."""
    return render(annotation_of(Row("a.wav", Path("a.wav"), **about), 3725.0, transcript))


def test_subtitles_are_what_players_read():
    assert written(SPOKEN, as_srt) == (
        "1\n00:00:00,100 --> 00:00:00,500\none\n\n"
        "2\n00:00:00,600 --> 00:00:07,600\ntwo\n\n"  # 7 seconds of a minute
        "3\n01:02:03,500 --> 01:02:04,000\nthree\n"
    )
    assert written(SPOKEN, as_vtt).startswith("WEBVTT\n\n00:00:00.100 --> 00:00:00.500\none\n")
    assert written(Transcript("", 0.5, ()), as_srt) == ""


def test_a_run_writes_a_line_for_each_recording_and_the_formats_asked_for(recognizer, tmp_path):
    rows = list_recordings(SPEECH).rows[:3]
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    out = tmp_path / "out"
    outcomes = list(
        transcribe_corpus(recognizer, [*rows, Row("bad.wav", bad)], out, formats=["txt", "srt", "vtt"], max_duration=60)
    )
    assert [outcome.reason is None for outcome in outcomes] == [True, True, True, False]
    lines = [json.loads(line) for line in (out / transcription_run.TRANSCRIPTS).read_text().splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in rows]
    assert [line["path"] for line in lines] == [str(row.path) for row in rows]
    assert all({"text", "score", "words"} <= set(line) for line in lines)
    assert (out / f"{rows[0].id}.txt").read_text() == lines[0]["text"] + "\n"
    assert (out / f"{rows[0].id}.srt").read_text().startswith("1\n00:00:")
    assert (out / f"{rows[0].id}.vtt").read_text().startswith("WEBVTT")
    assert json.loads((out / "failures.jsonl").read_text())["id"] == "bad.wav"
    assert not [path for path in out.rglob("*") if "unfinished" in path.name]


def test_the_transcripts_of_the_run_before_stay_until_the_new_ones_are_whole(recognizer, tmp_path):
    rows = list_recordings(SPEECH).rows[:2]
    list(transcribe_corpus(recognizer, rows, tmp_path, formats=[], max_duration=60))
    before = (tmp_path / transcription_run.TRANSCRIPTS).read_text()
    run = transcribe_corpus(recognizer, rows[::-1], tmp_path, formats=[], max_duration=60)
    next(run)
    assert (tmp_path / transcription_run.TRANSCRIPTS).read_text() == before
    run.close()
    assert (tmp_path / transcription_run.TRANSCRIPTS).read_text() != before


def test_an_unknown_format_is_an_error_before_anything_is_written(recognizer, tmp_path):
    with pytest.raises(ValueError, match="txt, srt, vtt"):
        transcribe_corpus(recognizer, [], tmp_path / "out", formats=["docx"], max_duration=60)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_ends_the_run(recognizer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        list(transcribe_corpus(recognizer, list_recordings(SPEECH).rows[:1], tmp_path, formats=[], max_duration=60))
    assert not (tmp_path / transcription_run.TRANSCRIPTS).exists()


def test_the_command_needs_no_arguments(tmp_path, monkeypatch, capsys):
    from w2v_attn.cli import app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        app.main(["transcribe", "formats=[srt]"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "Transcripts" in out
    assert "36 of 36" in out
    assert len((tmp_path / "transcripts" / "transcripts.jsonl").read_text().splitlines()) == 36
