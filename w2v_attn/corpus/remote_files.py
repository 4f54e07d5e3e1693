"""Recordings and lists at URLs: fetched by fsspec into a cache on this machine when they are needed."""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from w2v_attn.corpus.rows import CorpusError
from w2v_attn.whole_files import written_whole

# Seconds to connect, and between two pieces of a file; a whole file may take as long as it needs.
CONNECT_TIMEOUT, READ_TIMEOUT = 30, 60
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(audio: str) -> bool:
    """Return whether a source of recordings is a URL."""
    return _URL.match(audio) is not None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """The content of a recording at a URL, which is taken not to change: a copy in the cache is not fetched again."""

    url: str

    @property
    def public_url(self) -> str:
        """The URL without the name and the password of a user."""
        return without_password(self.url)

    @property
    def size(self) -> int:
        try:
            return cached_path(self.url).stat().st_size
        except OSError:
            return 0

    def __call__(self) -> bytes:
        return fetch(self.url).read_bytes()

    def state(self) -> str | None:
        return self.url


def cached_path(url: str) -> Path:
    """Return where the copy of a URL is, or will be: in $XDG_CACHE_HOME/w2v_attn, by default ~/.cache/w2v_attn."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(cache, "w2v_attn", "urls", name[:2], f"{name}{Path(urlsplit(url).path).suffix[:16]}")


def without_password(url: str) -> str:
    """Return a URL without the name and the password of a user."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


def fetch(url: str) -> Path:
    """Return a whole copy of what is at a URL.

    Raises:
        CorpusError: it cannot be fetched, or was cut short; the text completes a sentence that begins with its name.
    """
    path = cached_path(url)
    if path.is_file():
        return path
    if (reason := unfetchable_reason(url)) is not None:
        raise CorpusError(reason)
    try:
        with written_whole(path) as temporary:
            _download(url, temporary)
    except CorpusError:
        raise
    except Exception as error:  # of aiohttp, of a cloud's library, of the disk
        cause = error.__cause__ or error  # fsspec calls whatever goes wrong a missing file
        reason = "it is not there" if str(cause) == url else str(cause).strip() or type(cause).__name__
        raise CorpusError(f"cannot be fetched from {without_password(url)}: {reason}") from error
    return path


def _download(url: str, path: Path) -> None:
    from fsspec.core import url_to_fs

    system, name = url_to_fs(url, **_options(url))
    stated = system.info(name).get("size")
    system.get_file(name, os.fspath(path))
    size = path.stat().st_size
    if stated is not None and size != stated:
        raise CorpusError(f"cannot be fetched from {without_password(url)}: {size:,} of {stated:,} bytes arrived")


def _options(url: str) -> dict[str, Any]:
    if not url.lower().startswith(("http://", "https://")):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def unfetchable_reason(url: str) -> str | None:
    """Return why a URL is none, or why none of its kind can be fetched; None if it can."""
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        return f"is not a URL: {url}: {error}"
    return _unsupported(scheme)


@lru_cache
def _unsupported(scheme: str) -> str | None:
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        if scheme in ("http", "https"):
            return f"is a URL, and fetching {scheme}:// needs the extra url: pip install 'w2v_attn[url]'"
        return f"is a URL, and {scheme}:// cannot be fetched: {error}"
    except ValueError:
        return f"is a URL with the unknown scheme {scheme}://: expected a path, or https://, s3://, gs:// …"
    return None
