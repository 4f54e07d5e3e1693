"""Recordings and lists at URLs: fetched once, whole or not at all, and a URL that fails costs its row."""

import functools
import http.server
import threading

import pytest
import torch
from conftest import SPEECH

from w2v_attn.corpus import remote_files
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import CorpusError
from w2v_attn.runs.row_reader import read_row, source_state

pytest.importorskip("aiohttp")
CLIPS = sorted(SPEECH.rglob("*.flac"))[:2]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts requests, and of files named cut* only the first half."""

    def do_GET(self):
        self.server.fetched.append(self.path)
        if "cut" not in self.path:
            return super().do_GET()
        content = CLIPS[0].read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        return None

    def do_HEAD(self):
        if "cut" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", str(CLIPS[0].stat().st_size))
            self.end_headers()
        else:
            super().do_HEAD()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine: its address, its folder, and the paths that were fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    (folder / "clips").mkdir(parents=True)
    for name, clip in zip("ab", CLIPS, strict=True):
        (folder / "clips" / f"{name}.flac").write_bytes(clip.read_bytes())
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.fetched = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder, running.fetched
        running.shutdown()


def read(row):
    return read_row(row, sample_rate=16_000).waveform


def whole(number):
    (row,) = list_recordings(CLIPS[number]).rows
    return read(row)


def test_a_recording_at_a_url_is_fetched_once_and_read_like_a_file(server):
    address, _, fetched = server
    (row,) = list_recordings(f"{address}/clips/a.flac").rows
    assert (row.id, row.location) == ("a.flac", f"{address}/clips/a.flac")
    assert fetched == []
    state = source_state(row)
    for _ in range(2):
        assert torch.equal(read(row), whole(0))
    assert fetched == ["/clips/a.flac"]
    assert source_state(row) == state


@pytest.mark.parametrize("at", ["list.csv", "a list of URLs here"])
def test_lists_hold_urls_and_may_be_at_one(at, server, tmp_path):
    address, folder, _ = server
    if at == "list.csv":  # its paths are relative to it
        (folder / "list.csv").write_text("path,text\nclips/a.flac,one\nclips/b.flac,two\n")
        rows = list_recordings(f"{address}/list.csv").rows
    else:
        (tmp_path / "l.csv").write_text(f"path,text\n{address}/clips/a.flac,one\n{address}/clips/b.flac,two\n")
        rows = list_recordings(tmp_path / "l.csv").rows
    assert [(row.id, row.text) for row in rows] == [("a.flac", "one"), ("b.flac", "two")]
    assert all(torch.equal(read(row), whole(number)) for number, row in enumerate(rows))


def test_what_cannot_be_fetched_costs_its_row_and_leaves_nothing(server, tmp_path):
    address, _, _ = server
    urls = [f"{address}/{name}" for name in ("absent.flac", "cut.flac", "clips/a.flac")]
    (tmp_path / "l.txt").write_text("\n".join([*urls, "http://127.0.0.1:1/x.flac", "gopher://x/a.flac"]))
    absent, cut, good, closed, strange = list_recordings(tmp_path / "l.txt").rows
    for row, says in (
        (absent, r"absent\.flac: 404"),
        (cut, "cannot be fetched"),
        (closed, "connect to host"),
    ):
        with pytest.raises(ValueError, match=says):
            read(row)
    assert "the unknown scheme gopher://" in strange.unusable_reason
    assert torch.equal(read(good), whole(0))
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 1
    with pytest.raises(CorpusError, match=r"cannot be fetched from .*: 404"):
        list_recordings(f"{address}/absent.csv")


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    def missing(scheme):
        raise ImportError("HTTPFileSystem requires aiohttp")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    remote_files._unsupported.cache_clear()
    try:
        with pytest.raises(CorpusError, match=r"https://.*pip install 'w2v_attn\[url\]'"):
            list_recordings("https://example.org/a.wav")
        (tmp_path / "l.txt").write_text("a.wav\nhttps://example.org/b.wav\n")
        rows = list_recordings(tmp_path / "l.txt").rows
        assert [row.unusable_reason is None for row in rows] == [True, False]
    finally:
        remote_files._unsupported.cache_clear()


def test_urls_that_differ_in_their_query_have_different_ids(tmp_path):
    (tmp_path / "l.txt").write_text("https://x.org/get/a.wav?part=1/2\nhttps://user:secret@x.org/get/a.wav?part=2\n")
    rows = list_recordings(tmp_path / "l.txt").rows
    assert [row.id for row in rows] == ["a.wav?part=1_2", "a.wav?part=2"]
    assert rows[1].location == "https://x.org/get/a.wav?part=2"  # without the password
