"""No healthy recording is refused or flagged, whichever encoder and container of ffmpeg wrote it."""

import codecs_of_ffmpeg as codecs
import pytest

pytestmark = pytest.mark.skipif(not codecs.HAS_FFMPEG, reason="ffmpeg is not installed")

# One file of each kind that a decoder, a header or a tag makes special.
QUICK = (
    "7919-11025-1-vbr9-xing0.mp3",
    "art-xing0.mp3",
    "junk.mp3",
    "lyrics.mp3",
    "pipe.mp3",
    "size0.wav",
    "pipe.wav",
    "bw64.wav",
    "pcm_s64le.wav",
    "adpcm_swf.wav",
    "pcm_f32le.w64",
    "pipe.flac",
    "id3v2.flac",
    "art.flac",
    "pipe.au",
    "alac.caf",
    "art.m4a",
    "pipe.mp4",
    "live.webm",
    "adts.aac",
    "short.opus",
)


def test_a_healthy_file_of_each_special_kind_is_read_whole(tmp_path):
    pytest.importorskip("av")
    files = codecs.files()
    chosen = [next(file for file in files if file.name.endswith(name)) for name in QUICK]
    verdicts = list(codecs.judge_all(chosen, tmp_path))
    assert len(verdicts) == len(QUICK)
    assert {verdict.name: verdict.fault for verdict in verdicts if verdict.fault is not None} == {}


@pytest.mark.slow
def test_500_healthy_files_of_every_encoder_and_container_are_read_whole(tmp_path):
    pytest.importorskip("av")
    verdicts = list(codecs.judge_all(codecs.files(), tmp_path))
    assert len(verdicts) >= 500
    assert {verdict.name: verdict.fault for verdict in verdicts if verdict.fault is not None} == {}


def test_a_fault_is_found(tmp_path):
    """A file that is cut short, one with other samples than it should have, and one that is read unexpectedly."""
    whole = codecs.Encoding("16.wav", ("-c:a", "pcm_s16le"))
    cut = codecs.Encoding("cut.wav", whole.arguments, edit=lambda content: content[:-2000])
    longer = codecs.File(codecs.Encoding("silence.wav", ("-af", "adelay=10:all=1", *whole.arguments)), 8000, 16_000, 1)
    refused = codecs.Encoding("refused.wav", whole.arguments, refusal="not_audio")
    faults = [
        codecs.judge(file, tmp_path)
        for file in (
            codecs.File(whole, 8000, 16_000, 1),
            codecs.File(cut, 8000, 16_000, 1),
            longer,
            codecs.File(refused, 8000, 16_000, 1),
        )
    ]
    assert [fault is not None and fault.fault for fault in faults] == [
        None,
        "refused (truncated): it is truncated: its header states 16078 bytes, the file has 14078",
        "8160 samples, 8000 were written",
        "read, but not_audio was expected",
    ]
