"""Files that may be compressed with gzip, read up to their checksum."""

import contextlib
import gzip
import io
import pathlib
from collections.abc import Iterator

MAGIC = b"\x1f\x8b"
CHUNK_BYTES = 1 << 20
MAX_RATIO = 1032  # of deflate: no stream expands to more than this times its size

Stream = gzip.GzipFile | io.BufferedReader


@contextlib.contextmanager
def open_stream(path: pathlib.Path) -> Iterator[Stream]:
    """Open a file for reading, decompressed if its content is gzip, whatever its name says."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == MAGIC
        if not packed:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as stream:
            yield stream


def read_to_end(stream: Stream) -> None:
    """Read the rest of a compressed stream, whose checksum stands behind its last byte.

    Bytes after the compressed data are allowed. Raises OSError or EOFError if the data are damaged.
    """
    try:
        while isinstance(stream, gzip.GzipFile) and stream.read(CHUNK_BYTES):
            pass
    except gzip.BadGzipFile as error:
        # The checksum has been compared by then: these bytes do not start another gzip member.
        if not str(error).startswith("Not a gzipped file"):
            raise


def ending_warning(path: pathlib.Path) -> str:
    """A warning if the name of a file does not say whether it is compressed, else ""."""
    with open_stream(path) as stream:
        packed = isinstance(stream, gzip.GzipFile)
    if packed == path.name.lower().endswith(".gz"):
        return ""
    found = "is compressed with gzip" if packed else "is not compressed with gzip"
    return f"the file {found}, unlike its name says; it is read by its content"


def max_content_bytes(path: pathlib.Path) -> int:
    """An upper bound of the number of bytes in a file after decompression."""
    with open_stream(path) as stream:
        packed = isinstance(stream, gzip.GzipFile)
    return path.stat().st_size * (MAX_RATIO if packed else 1)
