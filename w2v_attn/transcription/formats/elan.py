"""EAF, the annotations of ELAN, by pympi (the extra `elan`)."""

import mimetypes
from typing import Any
from xml.etree import ElementTree

from w2v_attn.transcription.formats.annotation import Annotation, intervals

# ELAN requires a date. One of today would make another file of the same transcript.
DATE = "1970-01-01T00:00:00+00:00"
MIME_TYPES = {".wav": "audio/x-wav"}  # as ELAN writes it


def as_eaf(annotation: Annotation) -> str:
    """Return an EAF document with a tier for each tier, linked to the recording's file."""
    from pympi import Elan  # type: ignore[import-not-found]

    document: Any = Elan.Eaf(author="w2v_attn")
    document.adocument["DATE"] = DATE
    document.header["TIME_UNITS"] = "milliseconds"
    document.header["MEDIA_FILE"] = ""
    document.remove_tier("default")
    path = annotation.path.absolute()
    kind = MIME_TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or "audio/x-wav"
    document.add_linked_file(path.as_uri(), relpath=path.name, mimetype=kind)
    for name, words in annotation.tiers.items():
        document.add_tier(name, part=annotation.speaker)
        for start, end, text in intervals(words):
            document.add_annotation(name, round(1000 * start), round(1000 * end), text)
    content = ElementTree.tostring(Elan.to_adocument(document), encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{content}\n'
