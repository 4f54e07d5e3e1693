"""Decoding in subprocesses: what is read is the same to the bit, and a decoder that goes wrong costs one recording."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, SPEECH
from started import Started

from w2v_attn.audio import decoder_subprocess
from w2v_attn.audio.audio_decoder import AudioDecoderOptions
from w2v_attn.audio.decoder_subprocess import SubprocessDecoder
from w2v_attn.audio.read_audio import AudioError, read_recording
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError
from w2v_attn.runs.row_reader import read_row

RATE = 16_000
FAULTS = {
    "hold": "took longer than 1 seconds to decode",
    "crash": r"crashes its decoder \(SIGSEGV\)",
    "abort": r"crashes its decoder \(SIGABRT\)",
    "exit": r"crashes its decoder \(exit code 3\)",
    "hoard": "takes more than 0.2 GB of memory to decode",
}

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@dataclass(frozen=True)
class Stored:
    """The content of a recording that is no file of its own."""

    path: Path
    size: int = 0

    def __call__(self):
        return self.path.read_bytes()

    def state(self):
        return "stored"


@pytest.fixture
def decoder():
    with closing(SubprocessDecoder(timeout=1, memory_gb=0.2)) as made:
        yield made


@pytest.fixture
def faults(monkeypatch, tmp_path):
    """Processes that decode from here on have these faults: {"kind": "regular expression on paths"}."""

    def set_up(found):
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "stress" / "faults"), str(ROOT)]))
        monkeypatch.setenv("FAULTS", json.dumps(found))
        monkeypatch.setenv("ONCE", str(tmp_path))

    return set_up


@pytest.fixture
def clip():
    return list_recordings(SPEECH).rows[0].path


@pytest.fixture
def audio(tmp_path):
    """A folder of nine clips: a.flac, b.flac, …"""
    folder = tmp_path / "audio"
    folder.mkdir()
    for name, row in zip("abcdefghi", list_recordings(SPEECH).rows, strict=False):
        shutil.copy(row.path, folder / f"{name}.flac")
    return folder


def processes(limit):
    """Ids of the processes that decode within so many seconds, whoever started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if limit.encode() in words:
            found.append(int(path.parent.name))
    return found


def soon(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def same(ours, theirs):
    known = [{**vars(recording), "waveform": None} for recording in (ours, theirs)]
    return torch.equal(ours.waveform, theirs.waveform) and known[0] == known[1]


def test_what_is_read_in_a_subprocess_is_what_is_read_inline(decoder, clip, tmp_path):
    wave, _ = soundfile.read(clip, dtype="float32")
    files = [clip]
    for name, rate in (("a b.wav", RATE), ("é=1,😀.mp3", 44_100), ("~c.ogg", 8_000), ("stereo.flac", 48_000)):
        samples = np.stack([wave, 3 * wave], 1) if name == "stereo.flac" else 3 * wave
        soundfile.write(tmp_path / name, samples, rate)
        files.append(tmp_path / name)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")  # a name that is no text
    shutil.copy(files[1], odd)
    for path in [*files, odd]:
        assert same(decoder.read_recording(path, sample_rate=RATE), read_recording(path)), path
    part = {"sample_rate": 8000, "offset": 0.3, "duration": 0.25}
    assert same(decoder.read_recording(clip, **part), read_recording(clip, **part))
    row = Row("r", Path("set/1.flac"), offset=0.1, content=Stored(clip))
    assert same(read_row(row, sample_rate=RATE, decode=decoder.read_recording), read_row(row, sample_rate=RATE))


def test_what_is_refused_in_a_subprocess_is_refused_in_the_same_words(decoder, clip, tmp_path):
    short, text = tmp_path / "short.flac", tmp_path / "text.wav"
    short.write_bytes(clip.read_bytes()[:5000])
    text.write_text("no audio")
    for path in (short, text, tmp_path, tmp_path / "absent"):
        with pytest.raises(AudioError) as inline:
            read_recording(path)
        with pytest.raises(AudioError) as isolated:
            decoder.read_recording(path, sample_rate=RATE)
        assert str(isolated.value) == str(inline.value)
    for limit in ({"max_duration": 0.1}, {"rates": (22_050, 48_000)}, {"max_channels": 0}):
        with pytest.raises(AudioError) as inline:
            read_recording(clip, **limit)
        with pytest.raises(AudioError) as isolated:
            decoder.read_recording(clip, sample_rate=RATE, **limit)
        assert str(isolated.value) == str(inline.value)


def test_limits_on_rates_and_channels_hold_wherever_it_is_decoded(clip):
    for kind in ("inline", "subprocess"):
        made = AudioDecoderOptions(kind=kind, sample_rates=(22_050, 48_000)).start()
        with closing(made) as decoder, pytest.raises(AudioError, match="expected 22050 to 48000 Hz"):
            decoder.read_recording(clip, sample_rate=RATE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "there"}, "kind must be subprocess or inline, got there"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"memory_gb": float("nan")}, "memory_gb must be above 0"),
        ({"sample_rates": (8000, 4000)}, "sample_rates must be"),
        ({"sample_rates": (8000,)}, "sample_rates must be"),
        ({"max_channels": 0}, "max_channels must be above 0"),
    ],
)
def test_limits_that_no_recording_could_meet_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        AudioDecoderOptions(**options)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_decoder_that_goes_wrong_costs_one_recording(kind, decoder, audio, faults):
    faults({kind: "b.flac"})
    for path in sorted(audio.iterdir())[:3]:
        if path.name == "b.flac":
            began = time.monotonic()
            with pytest.raises(AudioError, match=FAULTS[kind]):
                decoder.read_recording(path, sample_rate=RATE)
            assert time.monotonic() - began < 10
        else:
            assert same(decoder.read_recording(path, sample_rate=RATE), read_recording(path))


@pytest.mark.parametrize("kind", ["hang", "crash"])
def test_a_fault_that_does_not_come_again_costs_nothing(kind, decoder, clip, faults):
    faults({f"once {kind}": clip.name})
    assert same(decoder.read_recording(clip, sample_rate=RATE), read_recording(clip))


def test_a_process_that_ended_while_it_waited_costs_nothing(decoder, clip):
    decoder.read_recording(clip, sample_rate=RATE)
    (idle,) = decoder._idle
    idle.kill()
    idle._process.wait()
    assert same(decoder.read_recording(clip, sample_rate=RATE), read_recording(clip))


@linux
def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path):
    """Half an hour is 115 MB of samples, and a process of 50 MB decodes it."""
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(1800 * RATE, np.int16), RATE)
    with closing(SubprocessDecoder(timeout=60, memory_gb=0.05)) as decoder:
        assert decoder.read_recording(path, sample_rate=RATE).duration == 1800


def test_the_processes_import_neither_torch_nor_what_is_in_the_folder(monkeypatch, tmp_path):
    (tmp_path / "soundfile.py").write_text("raise SystemExit('taken from the folder')")
    monkeypatch.chdir(tmp_path)
    code = decoder_subprocess.BOOTSTRAP.replace(
        "main()", "assert not {'torch', 'transformers', 'hydra'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-P", "-c", code, decoder_subprocess.PACKAGE_ROOT], check=True)


def test_processes_that_do_not_start_end_the_run_and_say_so(clip, faults, monkeypatch, capfd):
    monkeypatch.setattr(decoder_subprocess, "BOOTSTRAP", "raise SystemExit('there is no soundfile')")
    with closing(SubprocessDecoder(timeout=1, memory_gb=0.2)) as decoder, pytest.raises(RunError, match="do not start"):
        decoder.read_recording(clip, sample_rate=RATE)
    assert "there is no soundfile" in capfd.readouterr().err


def test_a_run_whose_processes_do_not_start_says_so_in_a_line(audio, monkeypatch, call):
    monkeypatch.setattr(sys, "executable", "/absent/python")
    code, _, said = call("extract", f"audio={audio}", "output=out", "audio_decoder=subprocess")
    assert code == 1
    assert "do not start (No such file or directory): audio_decoder=inline decodes without them" in said


@pytest.mark.parametrize("starts", [False, True])
def test_a_thread_that_waits_for_a_decoder_gets_an_error_when_it_is_closed(starts, clip, faults, monkeypatch):
    faults({"hang": clip.name})
    if starts:  # and takes its time: a busy machine
        monkeypatch.setattr(decoder_subprocess, "BOOTSTRAP", "import time\ntime.sleep(60)")
    decoder, said = SubprocessDecoder(timeout=60, memory_gb=0.2), []

    def read():
        try:
            decoder.read_recording(clip, sample_rate=RATE)
        except AudioError as error:
            said.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    time.sleep(1)
    began = time.monotonic()
    decoder.close()
    for reader in readers:
        reader.join(10)
    assert time.monotonic() - began < 5
    assert said == ["was interrupted"] * 3
    with pytest.raises(AudioError, match="was interrupted"):
        decoder.read_recording(clip, sample_rate=RATE)


# ---------------------------------------------------------------------------------------- the real command


def failures(output):
    lines = (output / "failures.jsonl").read_text().splitlines() if (output / "failures.jsonl").exists() else []
    return {found["id"]: found["reason"] for found in map(json.loads, lines)}


@linux
def test_a_run_with_decoders_that_hang_and_crash_has_all_other_features(audio, tmp_path, faults, call):
    for name in "ch":  # which are then missing from their batches as well
        clip = (audio / f"{name}.flac").read_bytes()
        (audio / f"{name}.flac").write_text("no audio")
    assert call("extract", f"audio={audio}", "output=inline", "audio_decoder=inline")[0] == 1
    for name in "ch":
        (audio / f"{name}.flac").write_bytes(clip)
    faults({"hold": "c.flac", "crash": "h.flac"})
    code, _, _ = call("extract", f"audio={audio}", "output=subprocess", "audio_decoder.timeout=1")
    assert code == 1
    found = failures(tmp_path / "subprocess")
    assert found.keys() == {"c.flac", "h.flac"}
    assert "took longer than 1 seconds" in found["c.flac"]
    assert "SIGSEGV" in found["h.flac"]
    files = sorted((tmp_path / "inline").glob("*.safetensors"))
    assert len(files) == 7
    for path in files:
        assert path.read_bytes() == (tmp_path / "subprocess" / path.name).read_bytes()


@pytest.mark.slow
@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_while_decoders_hang_ends_at_once_and_leaves_no_process(number, audio, tmp_path, faults):
    faults({"hang": r"[ab]\.flac"})
    limit = f"9.{os.getpid():08}{number:02}"  # by which its processes are found, and not those of another test
    command = ["extract", f"audio={audio}", "output=out", f"audio_decoder.timeout={limit}"]
    run = Started(command, tmp_path / "said", folder=tmp_path, own_group=True)
    assert soon(lambda: processes(limit), 60)
    time.sleep(0.5)
    os.killpg(run.pid, number)  # as a terminal does it
    assert run.end(5) == (130 if number == signal.SIGINT else -number)
    assert soon(lambda: not processes(limit), 1)
    assert failures(tmp_path / "out") == {}


@pytest.mark.slow
def test_a_decoder_whose_parent_is_gone_ends_itself_whatever_it_does(clip, faults, monkeypatch):
    start = decoder_subprocess.BOOTSTRAP.replace(
        "main()", "import w2v_attn.audio.worker; w2v_attn.audio.worker.GRACE = 0.2; main()"
    )
    monkeypatch.setattr(decoder_subprocess, "BOOTSTRAP", start)
    faults({"hold": clip.name})
    process = decoder_subprocess._Process(0.1, 1)
    process.wait_ready()
    process.send({"path": str(clip), "sample_rate": RATE})
    assert process._process.wait(10) == -signal.SIGALRM
    process.end()
