"""Read and write JSONL: files, pipes and compressed files, one record a line.

Only this package and the command line touch standard input and standard output.
"""

from musiccli.core.jsonl.compression import read_errors
from musiccli.core.jsonl.identities import Identities
from musiccli.core.jsonl.reader import (
    MAX_LINE,
    STDIN_NAME,
    Line,
    RecordFiles,
    check_readable,
    decode,
    from_keyboard,
    from_stdin,
    open_input,
    parse_lines,
    read,
    read_lines,
    reserved_stdin,
    sha256,
    standard_input,
    standard_input_as_file,
)
from musiccli.core.jsonl.rejects import Rejects
from musiccli.core.jsonl.shards import Shard, parse_shard
from musiccli.core.jsonl.writer import Output, open_output, silence_stdout

__all__ = [
    "MAX_LINE",
    "STDIN_NAME",
    "Identities",
    "Line",
    "Output",
    "RecordFiles",
    "Rejects",
    "Shard",
    "check_readable",
    "decode",
    "from_keyboard",
    "from_stdin",
    "open_input",
    "open_output",
    "parse_lines",
    "parse_shard",
    "read",
    "read_errors",
    "read_lines",
    "reserved_stdin",
    "sha256",
    "silence_stdout",
    "standard_input",
    "standard_input_as_file",
]
