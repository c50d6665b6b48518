"""Python programs without the seconds that importing takes: each is a fork of one process.

`python()` stands for the interpreter where a process of its own matters, but not how it starts. It
hands its arguments, folder, environment and standard streams to a server, which has imported the
libraries. The server forks, and the child runs the program. A child's interpreter is the same, so
the processes that torch starts for it are forks, too. `command()` starts `music` in the same way.

The server starts with the test run, imports at the first request, and ends with the run.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path

LIBRARIES = (
    "musiccli.bench.report.tables",
    "musiccli.cli.main",
    "musiccli.llm.local.engine",
    "musiccli.score.scorer",
    "musiccli.serve.server",
    "musiccli.train.run",
    "datasets",
    "litellm",
    "peft",
    "scipy.stats",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.launcher.api",
    "torch.distributed.run",
    "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.llama.modeling_llama",
)
FOLDER = "MUSIC_TESTS_PRELOADED"  # the variable that tells every process of a run where to ask
# A client ends as its program ends, by an exit status or a signal. Where it is killed, its program
# is; one that torch started also dies with the process that started it.
CLIENT = """\
import json, os, select, signal, socket, sys
arguments = {before!r} + sys.argv[1:]
if arguments[0] not in ("-u", "-c", "-m") and arguments[0].startswith("-"):
    os.execv(sys.executable, [sys.executable, *arguments])  # it wants an interpreter of its own
if "LOCAL_RANK" in os.environ:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
server = socket.socket(socket.AF_UNIX)
server.connect({folder!r} + "/socket")
request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
child = int.from_bytes(server.recv(8), "big")
# A handler would wait for the program's end if its signal came just before `recv` began.
signals, wakeup = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(wakeup)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: None)
for stream in (0, 1, 2):
    os.close(stream)
while server not in select.select([server, signals], [], [])[0]:
    for number in os.read(signals, 64):
        os.kill(child, number)
code = os.waitstatus_to_exitcode(int.from_bytes(server.recv(8) or b"\\1\\0", "big"))
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class Server:
    """The process that the programs of a test run are forks of; `close` ends it and them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="music-tests-"))
        (self.folder / "bin").mkdir()
        for name, before in (("python", []), ("music", ["-m", "musiccli"])):
            program = self.folder / "bin" / name
            text = CLIENT.format(before=before, folder=str(self.folder))
            program.write_text(f"#!{sys.executable} -ISE\n{text}")
            program.chmod(0o755)
        os.environ[FOLDER] = str(self.folder)
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.folder],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the test run, which then ends this
        )
        assert self._process.stdout.read(1), "the server of preloaded programs did not start"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self.folder)


def programs() -> Path:
    """The folder for PATH that holds `music`; its `python` is the preloaded interpreter."""
    return Path(os.environ[FOLDER]) / "bin"


def python() -> str:
    """The program that stands for the interpreter: it takes `-m NAME`, `-c CODE` or a file."""
    return str(programs() / "python")


def command() -> list[str]:
    """The words that start `music`."""
    return [str(programs() / "music")]


def program(client: int) -> int:
    """The number of the process that runs what the client with this number was started for."""
    from console import wait_until

    link = Path(os.environ[FOLDER]) / str(client)
    wait_until(link.is_symlink)  # a program may write before there is one
    return int(link.readlink().name)


# The server

Program = tuple[int, socket.socket, Path]  # a child, its client, and the link from client to child


def serve(folder: Path) -> None:
    """Wait for the first client, then fork once for every client, until standard input ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    os.write(1, b"1")
    if listener in select.select([listener, 0], [], [])[0]:
        for library in LIBRARIES:
            importlib.import_module(library)
        gc.enable()  # the command line switches it off while it starts
        gc.freeze()  # what is here is shared with the children as long as nobody writes to it
        answer_clients(listener, folder)


def answer_clients(listener: socket.socket, folder: Path) -> None:
    """Fork for clients. Each is told its child's number, then how it ended."""
    running: dict[int, Program] = {}  # of pidfd or connection
    while True:
        for ready in select.select([listener, 0, *running], [], [])[0]:
            if ready is listener:
                running.update(start_program(listener, folder))
            elif ready == 0:
                for child, _, _ in running.values():
                    os.kill(child, signal.SIGKILL)
                return
            elif ready in running:
                end_program(ready, running)


def start_program(listener: socket.socket, folder: Path) -> dict[int, Program]:
    client, _ = listener.accept()
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    link = folder / str(int.from_bytes(credentials[:4], sys.byteorder))  # the client's number
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += client.recv(1 << 20)
    child = os.fork()
    if child == 0:
        listener.close()
        client.close()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os._exit(run_as_main(*json.loads(request), str(folder / "bin" / "python")))
    for stream in streams:
        os.close(stream)
    link.unlink(missing_ok=True)  # of a client that was killed a moment ago and had this number
    link.symlink_to(str(child))
    with contextlib.suppress(OSError):  # the client was killed
        client.sendall(child.to_bytes(8, "big"))
    return dict.fromkeys((os.pidfd_open(child), client.fileno()), (child, client, link))


def end_program(ready: int, running: dict[int, Program]) -> None:
    """A child has ended, or its client was killed."""
    child, client, link = running[ready]
    if ready == client.fileno():
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if link.is_symlink() and link.readlink().name == str(child):
        link.unlink()  # before the client ends: another may then have its number
    with contextlib.suppress(OSError):
        client.sendall(status.to_bytes(8, "big"))
    for number in [number for number, (one, _, _) in running.items() if one == child]:
        del running[number]
        if number != client.fileno():
            os.close(number)
    client.close()


# A child


def run_as_main(
    arguments: list[str], folder: str, environment: dict[str, str], interpreter: str
) -> int:
    """Run a program as a new interpreter would; returns its exit status."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.executable = interpreter
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    paths = [path for path in environment.get("PYTHONPATH", "").split(":") if path]
    sys.path[:0] = paths
    status = status_of(run_program, [word for word in arguments if word != "-u"], paths)
    return status_of(end_interpreter) or status


def run_program(arguments: list[str], paths: list[str]) -> None:
    for path in paths:
        if (Path(path) / "sitecustomize.py").exists():
            runpy.run_path(f"{path}/sitecustomize.py")
    kind, *arguments = arguments
    if kind not in ("-c", "-m"):
        sys.argv = [kind, *arguments]
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
        return
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, os.getcwd())
    program, *arguments = arguments
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(program, main.__dict__)


def end_interpreter() -> None:
    """What an interpreter does when its program has ended, but for freeing its memory."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream and not stream.closed:
            stream.flush()


def status_of(action: Callable[..., None], *arguments: object) -> int:
    """The exit status of a program that does this."""
    try:
        action(*arguments)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return int(ended.code or 0)
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    serve(Path(sys.argv[1]))
