"""Files and lines that carry a digest of themselves: what is read back is what was written, or it is found out.

Disks and copies that change bytes raise no error. This finds damage, not intent: whoever can write a file can write its digest.
"""

import contextlib
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from seed import untrusted

DIGEST_BYTES = 32
SEAL = re.compile(rb',?"crc32":"([0-9a-f]{8})"\}$')  # the last field of a line


class _Writer:
    """As much of a file as content is written to."""

    def __init__(self, handle: BinaryIO) -> None:
        self.flush = handle.flush
        self._handle = handle
        self.digest = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> int:
        """Write the next bytes."""
        self.digest.update(content)
        return self._handle.write(content)


@contextlib.contextmanager
def write_sealed(path: Path) -> Iterator[BinaryIO]:
    """Yield what to write a file's content to; its digest follows. As ``replace_file``.

    Raises:
        OSError: the disk does not take it.
    """
    with untrusted.replace_file(path) as handle:
        writer = _Writer(handle)
        yield cast("BinaryIO", writer)
        handle.write(writer.digest.digest())


def is_sealed(path: Path) -> bool:
    """Does a file end in the digest of all that comes before? Reads it once, piece by piece."""
    if not path.is_file():
        return False
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        left = os.fstat(handle.fileno()).st_size - DIGEST_BYTES
        while left > 0 and (piece := handle.read(min(left, untrusted.CHUNK_BYTES))):
            digest.update(piece)
            left -= len(piece)
        return left == 0 and handle.read() == digest.digest()


def seal_line(line: bytes) -> bytes:
    """Return a JSON object with the checksum of its bytes as a last field."""
    assert line.endswith(b"}")
    comma = b"" if line == b"{}" else b","
    return b'%b%b"crc32":"%08x"}' % (line[:-1], comma, zlib.crc32(line))


def open_line(line: bytes) -> bytes:
    """Return a line as it was before it was sealed; one that never was, as earlier versions wrote them, as it is.

    Raises:
        ValueError: it is not what was sealed.
    """
    found = SEAL.search(line)
    if found is None:
        return line
    content = line[: found.start()] + b"}"
    if zlib.crc32(content) != int(found[1], 16):
        raise ValueError("its checksum is that of another content")
    return content
