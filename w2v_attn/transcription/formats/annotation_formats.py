"""The formats of files about one recording, by name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from w2v_attn.transcription.formats.annotation import Annotation
from w2v_attn.transcription.formats.elan import as_eaf
from w2v_attn.transcription.formats.subtitle_files import as_srt, as_vtt
from w2v_attn.transcription.formats.tables import as_ctm, as_rttm, as_tsv, as_txt
from w2v_attn.transcription.formats.textgrid import as_textgrid


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of files about one recording.

    Attributes:
        extension: Of its files, without the dot.
        render: Annotation -> the content of the file.
        library: The package that it needs; None if there is none.
        extra: The extra of this package that installs it.
    """

    extension: str
    render: Callable[[Annotation], str]
    library: str | None = None
    extra: str | None = None


FORMATS = {
    "txt": AnnotationFormat("txt", as_txt),
    "srt": AnnotationFormat("srt", as_srt),
    "vtt": AnnotationFormat("vtt", as_vtt),
    "tsv": AnnotationFormat("tsv", as_tsv),
    "textgrid": AnnotationFormat("TextGrid", as_textgrid),
    "eaf": AnnotationFormat("eaf", as_eaf, library="pympi", extra="elan"),
    "ctm": AnnotationFormat("ctm", as_ctm),
    "rttm": AnnotationFormat("rttm", as_rttm),
}


def find_formats(names: Iterable[str]) -> tuple[AnnotationFormat, ...]:
    """Return the formats of these names, in any case and with or without a dot.

    Raises:
        ValueError: an unknown format, or one whose library is not installed.
    """
    asked = {name.lower().removeprefix("."): name for name in names}
    if unknown := [name for key, name in asked.items() if key not in FORMATS]:
        raise ValueError(f"formats must be of {', '.join(FORMATS)}, got {', '.join(unknown)}")
    for key in asked:
        library = FORMATS[key].library
        if library is not None and find_spec(library) is None:
            raise ValueError(f"formats={key} needs {library}: pip install 'w2v_attn[{FORMATS[key].extra}]'")
    return tuple(FORMATS[key] for key in asked)
