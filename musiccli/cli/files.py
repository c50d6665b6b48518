"""Files that commands write beside their records."""

from collections.abc import Iterable

from musiccli.core import jsonl


def save(path: str, pieces: Iterable[bytes]) -> None:
    """Write a file, which appears only when it is complete."""
    output = jsonl.open_output(path)
    try:
        for piece in pieces:
            output.write_bytes(piece)
    except BaseException:
        output.discard()
        raise
    output.close()
