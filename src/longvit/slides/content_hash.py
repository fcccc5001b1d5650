"""What a slide's content is called: a hash that costs milliseconds whatever the size of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_END_BYTES = 64 * 1024
_SAMPLE_BYTES = 4096
_SAMPLES = 64


def content_identity(files: Iterable[Path]) -> str:
    """32 hex digits over size, head, tail and 64 evenly spaced samples of 4 KiB of each file, in the order given.

    Names and folders do not count, so a copy elsewhere is the same slide. It tells slides apart; it does not see a
    change of a few bytes between the samples.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size_bytes = path.stat().st_size
        digest.update(f"{size_bytes};".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            for sample in range(1, _SAMPLES + 1):
                file.seek(size_bytes * sample // (_SAMPLES + 1))
                digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size_bytes - _END_BYTES))
            digest.update(file.read(_END_BYTES))
    return digest.hexdigest()
