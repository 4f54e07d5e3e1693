"""A folder of recordings, and one recording."""

from w2v_attn.corpus.audio_folder import list_folder
from w2v_attn.corpus.list_formats.list_format import ListFormat
from w2v_attn.corpus.rows import Corpus, Row

FOLDER = ListFormat("folder", lambda path: path.is_dir(), list_folder)
FILE = ListFormat("recording", lambda _: True, lambda path, _: Corpus((Row(path.name, path),)))
