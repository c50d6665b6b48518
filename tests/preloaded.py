"""`music` for shell scripts, without the seconds that importing takes: each run is a fork of one process.

A script of a recipe or of the manual starts `music` dozens of times. `preloaded` puts a `music` on PATH that hands
its arguments, folder, environment and standard streams to a server, which has imported the libraries. The server
forks, and the child runs the command line as a process of its own.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = (
    "musiccli.bench.report.tables",
    "musiccli.llm.local.engine",
    "litellm",
    "musiccli.score.scorer",
    "musiccli.train.run",
    "peft",
    "datasets",
)
CLIENT = """\
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
child = int.from_bytes(server.recv(8), "big")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(child, number))
for stream in (0, 1, 2):
    os.close(stream)
os._exit(int.from_bytes(server.recv(8) or b"\\1", "big"))
"""


@contextlib.contextmanager
def preloaded(folder: Path) -> Iterator[Path]:
    """Yield a folder for PATH that holds `music`; its server ends with the context."""
    address = str(folder / "preloaded.socket")
    programs = folder / "bin"
    programs.mkdir()
    script = programs / "music"
    script.write_text(f"#!{sys.executable} -ISE\n" + CLIENT.format(address=address))
    script.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=subprocess.PIPE,
    )
    with server:
        assert server.stdout.read(1), "the server of preloaded commands did not start"
        try:
            yield programs
        finally:
            server.kill()


def serve(address: str) -> None:
    """Import the libraries, then fork once for every client."""
    for library in LIBRARIES:
        importlib.import_module(library)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    os.write(1, b"1")
    os.close(1)
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os._exit(answer(client))
        client.close()


def answer(client: socket.socket) -> int:
    """Run a client's command line in a child, and tell the client the child's number, then its status."""
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += client.recv(65536)
    arguments, folder, environment = json.loads(request)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        client.close()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os._exit(run(arguments))
    for stream in streams:
        os.close(stream)
    client.sendall(child.to_bytes(8, "big"))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    client.sendall((code if code >= 0 else 128 - code).to_bytes(8, "big"))
    return 0


def run(arguments: list[str]) -> int:
    from musiccli.cli.main import main

    sys.argv = ["music", *arguments]
    sys.stdin, sys.stdout, sys.stderr = (open(fd, mode) for fd, mode in enumerate("rww"))  # noqa: SIM115
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    serve(sys.argv[1])
