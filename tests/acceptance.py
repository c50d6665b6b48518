"""What simulate promises, at full size, against the loopback server. By hand, each in minutes:

    python tests/acceptance.py chaos      # 2,000 conversations of 3 turns, 5% of each fault
    python tests/acceptance.py faults     # the same, each fault alone
    python tests/acceptance.py kills      # 50 kill -9 over one run
    python tests/acceptance.py memory     # 100,000 seeds streamed
    python tests/acceptance.py addresses  # 4,096 calls in flight over 8 addresses, one of them slow
    python tests/acceptance.py flood      # 4,096 calls in flight on real sockets
    python tests/acceptance.py cache      # a call cache of a million rows

test_acceptance.py runs small versions of them. Each prints its figures and fails where a promise is not kept.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

from build import read, talk
from openai_server import FAULTS, Server, allow_many_connections, digest, serve
from peak_memory import RESIDENT, reporting_peak
from scripted import MUSIC, Music, scripted_reply

from musiccli.core.store import Store
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.llm.provider_errors import ProviderError

ROOT = Path(__file__).parent.parent
MODEL = "openai/scripted"
PASSING = [
    fault for fault in FAULTS if fault != "echo-key"
]  # after which a call is worth another try
QUIET, PAUSE = (
    0.05,
    0.01,
)  # seconds that a 429 asks everybody to wait, and between the pieces of a slow body
TIMEOUT = 5  # seconds; then a call that hangs is given up, and no other on a busy machine


def seeds(count: int) -> Iterator[str]:
    """Contexts, one a line, that end with the user."""
    return (
        json.dumps({"id": number, "messages": talk(f"Question {number}, asked by somebody?")})
        + "\n"
        for number in range(count)
    )


def simulate(server: Server, *more: object, turns: int = 3) -> tuple:
    return (
        "simulate",
        "--assistant",
        MODEL,
        "--api-base",
        server.base_url,
        "--timeout",
        TIMEOUT,
        "--turns",
        turns,
        *more,
    )


def needed(count: int, turns: int) -> int:
    """Calls that so many conversations take where nothing goes wrong: the first reply of the user is in the seed."""
    return count * (2 * turns + 2 * (turns - 1))


def chaos(
    folder: Path,
    count: int = 2000,
    turns: int = 3,
    faults: dict[str, float] | None = None,
    most: float = 1.2,
) -> dict:
    """Everything that begins finishes or is named as failed, once; and no more is asked than the faults make needed.

    A call that fails must be made again, so the ideal is what the conversations take and one call more for every
    fault that spoils a call; above `most` times that, something is asked for in vain.
    """
    faults = dict.fromkeys(PASSING, 0.05) if faults is None else faults
    out, rejects = folder / "out.jsonl", folder / "rejects.jsonl"
    with (
        Music(folder) as music,
        serve(
            reply=scripted_reply, faults=faults, retry_after=QUIET, pause=PAUSE, keep=0
        ) as server,
    ):
        begun = time.monotonic()
        done = music(
            *simulate(server, "-o", out, "--rejects", rejects, turns=turns),
            stdin="".join(seeds(count)),
            timeout=1800,
        )
        seconds = time.monotonic() - begun
    assert done.returncode in (0, 1), done.stderr[-2000:]
    finished = Counter((one["id"], one["branch"]) for one in read(out.read_text()))
    failed = (
        Counter(one["id"] for one in read(rejects.read_text())) if rejects.exists() else Counter()
    )
    whole = {identifier for identifier, _ in finished}
    assert set(finished.values()) <= {1} and set(failed.values()) <= {1}, (
        "something stands there twice"
    )
    assert len(finished) == 2 * len(whole) and whole | failed.keys() == set(range(count)), (
        "something is missing"
    )
    assert not whole & failed.keys() and (done.returncode == 1) == bool(failed)
    spoiling = sum(share for fault, share in faults.items() if fault != "slow")
    ideal = needed(count, turns) / (1 - spoiling)
    assert server.calls < most * ideal, f"{server.calls} calls, {ideal:.0f} would do"
    return {
        "conversations": count,
        "failed": len(failed),
        "calls": server.calls,
        "ideal": round(ideal),
        "ratio": round(server.calls / ideal, 3),
        "over_faultless": round(server.calls / needed(count, turns), 3),
        "seconds": round(seconds, 1),
        "last_line": done.stderr.splitlines()[-1],
    }


def each_fault(folder: Path, count: int = 2000, turns: int = 3) -> dict:
    """Chaos with one fault at a time: calls stay below 1.2 times what a faultless run takes."""
    found = {}
    for fault in PASSING:
        (folder / fault).mkdir()
        found[fault] = chaos(folder / fault, count, turns, {fault: 0.05})
        assert found[fault]["over_faultless"] < 1.2, found[fault]
    return {
        fault: {name: figures[name] for name in ("failed", "over_faultless", "seconds")}
        for fault, figures in found.items()
    }


def kills(
    folder: Path, count: int = 400, turns: int = 3, times: int = 50, concurrency: int = 16
) -> dict:
    """kill -9 at random moments: the output is that of an undisturbed run, and only what was in flight is asked twice."""
    rng, asked, lost, killed = (
        random.Random(0),
        {},
        Counter(),
        0,
    )  # asked: each call's last run; lost: what a kill cost

    stop_at: float = math.inf  # calls after which the server answers no more

    def reply(body: dict) -> str:
        call = digest(json.dumps(body, sort_keys=True).encode())
        if call in asked:
            lost[asked[call]] += 1
        asked[call] = killed
        if len(asked) >= stop_at:
            server.delay = 60  # so that the run cannot end before it is killed
        return scripted_reply(body)

    given = "".join(seeds(count))
    (folder / "plain").mkdir()
    with Music(folder / "plain") as music, serve(reply=scripted_reply, keep=0) as server:
        plain = music(
            *simulate(server, "-o", folder / "plain.jsonl", turns=turns), stdin=given, timeout=600
        )
        assert plain.returncode == 0, plain.stderr
        ideal = server.calls
    (folder / "seeds.jsonl").write_text(given)
    # Once the server has stopped, it still answers what is in flight.
    moments = sorted(rng.sample(range(1, ideal - concurrency), times))
    out = folder / "out.jsonl"
    with Music(folder) as music, serve(reply=reply, delay=0.02, keep=0) as server:
        line = simulate(
            server, folder / "seeds.jsonl", "-o", out, "--concurrency", concurrency, turns=turns
        )
        for moment in moments:
            server.delay, stop_at = 0.02, moment
            process = music.start(*line)
            wait_for(lambda moment=moment: len(asked) >= moment or rng.random() < 0.001, process)
            server.delay = 60
            time.sleep(rng.uniform(0, 0.05))
            assert process.poll() is None and not out.exists()
            process.kill()
            process.communicate()
            killed += 1
        server.delay, stop_at = 0.02, math.inf
        whole = music(*line, timeout=600)
        assert whole.returncode == 0, whole.stderr
    assert out.read_bytes() == (folder / "plain.jsonl").read_bytes(), (
        "another output than undisturbed"
    )
    assert len(asked) == ideal and max(lost.values(), default=0) <= concurrency, (
        f"{lost} calls repeated"
    )
    return {
        "kills": times,
        "calls": ideal,
        "repeated": lost.total(),
        "most_by_one_kill": max(lost.values(), default=0),
        "in_flight": concurrency,
    }


def wait_for(true, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def memory(folder: Path, counts: tuple[int, ...] = (10_000, 100_000), most: float = 1.1) -> dict:
    """Peak memory of a run over a stream of seeds does not grow with their number."""
    found = {}
    for count in counts:
        (folder / str(count)).mkdir()
        report = folder / f"{count}.peak"
        with (
            Music(folder / str(count), reporting_peak(report, MUSIC)) as music,
            serve(reply=scripted_reply, keep=0) as server,
        ):
            begun = time.monotonic()
            with (
                (folder / f"{count}.err").open("w") as errors,
                (folder / f"{count}.out").open("wb") as out,
            ):
                process = music.start(*simulate(server, turns=1), stdout=out, stderr=errors)
                feeder = threading.Thread(target=feed, args=(process, count))
                feeder.start()
                process.wait()
                feeder.join()
            assert process.returncode == 0, (folder / f"{count}.err").read_text()[-2000:]
            with (folder / f"{count}.out").open("rb") as written:
                assert sum(1 for _ in written) == 2 * count
            found[count] = {
                "peak_mb": round(int(report.read_text()) / 1024, 1),
                "seconds": round(time.monotonic() - begun, 1),
                "calls": server.calls,
            }
    first, last = (found[count]["peak_mb"] for count in (counts[0], counts[-1]))
    assert last < most * first, found
    return found


def feed(process, count: int) -> None:
    for line in seeds(count):
        process.stdin.write(line)
    process.stdin.close()


def addresses(folder: Path, count: int = 50_000, concurrency: int = 4096, number: int = 8) -> dict:
    """One of eight addresses that is slow, silent or full leaves most of the throughput to the others.

    It holds an eighth of the calls in flight at most, so seven eighths is what the others keep. The clock is simulated:
    a call takes 5 to 15 seconds, and no socket is opened.
    """
    behaviours = {
        "all alike": lambda in_flight: 10.0,
        "one takes 60 s": lambda in_flight: 60.0,
        "one never answers": lambda in_flight: math.inf,
        "one refuses from 64 calls on": lambda in_flight: None if in_flight > 64 else 10.0,
    }
    results = {
        name: share_calls(count, concurrency, number, behaviour)
        for name, behaviour in behaviours.items()
    }
    ideal = results["all alike"]["calls_per_second"]
    assert all(figures["calls_per_second"] > 0.8 * ideal for figures in results.values()), results
    return results


def share_calls(
    count: int, concurrency: int, number: int, behaviour: Callable[[int], float | None]
) -> dict:
    """Calls of one model with `number` addresses.

    Args:
        behaviour: how many seconds the first address takes with so many calls in flight; None for a refusal.
    """
    urls = [f"http://{host}:8000/v1" for host in range(number)]
    settings = ClientConfig(concurrency, timeout=120, api_base=tuple(urls))
    client, generator = Client(settings), random.Random(0)
    in_flight, answered, replied = Counter(), Counter(), []
    peak = 0

    async def complete(call: Call, url: str, key: str | None) -> Reply:
        nonlocal peak
        in_flight[url] += 1
        peak = max(peak, in_flight.total())
        try:
            seconds = behaviour(in_flight[url]) if url == urls[0] else 10.0
            if seconds is None:
                raise ProviderError("too many calls", 429)
            seconds *= generator.uniform(0.5, 1.5)
            await asyncio.sleep(min(seconds, settings.timeout))
            if seconds > settings.timeout:
                raise ProviderError("no answer", 408)
        finally:
            in_flight[url] -= 1
        answered[url] += 1
        replied.append(time.monotonic())
        return Reply("A form.", "stop", 8, 8, None)

    client.providers.openai_server.complete = complete
    question = ({"role": "user", "content": "What is a fugue in music?"},)

    async def every() -> None:
        calls = (Call("hosted_vllm/any", (n, "assistant", 0), question) for n in range(count))
        await asyncio.gather(*map(client.complete, calls))

    run_on_simulated_clock(every())
    first, last = replied[count // 2], replied[count * 7 // 8]  # neither the start nor the end
    return {
        "calls_per_second": round(count * 3 / 8 / (last - first)),
        "answered": [answered[url] for url in urls],
        "in_flight": peak,
        "seconds": round(replied[-1] - replied[0]),
    }


FLOOD = (
    RESIDENT
    + """
import asyncio, os, sys
from musiccli.llm import limiter
from musiccli.llm.call import Call
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.llm.providers import openai_server

count, *urls = sys.argv[1:]
limiter.INITIAL_LIMIT = int(count)  # no round of calls ends before all have begun
openai_server.CONNECT_TIMEOUT = 600
client = Client(ClientConfig(int(count), timeout=600, api_base=tuple(urls)))
question = ({"role": "user", "content": "What is a fugue in music? " * 100},)
calls = [Call("hosted_vllm/any", (n, "assistant", 0), question) for n in range(int(count))]

async def every():
    return await asyncio.gather(*map(client.complete, calls))

before = resident("VmHWM")
replies = asyncio.run(every())
print(len(replies), before >> 20, resident("VmHWM") >> 20, sum(os.times()[:2]))
"""
)


def flood(folder: Path, concurrency: int = 4096, number: int = 8) -> dict:
    """Thousands of calls in flight on real sockets; no server answers before its share of them has come."""
    share = concurrency // number
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serve(wait_for_calls=share, keep=0)) for _ in range(number)]
        urls = [server.base_url for server in servers]
        command = [sys.executable, "-c", FLOOD, str(concurrency), *urls]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert [server.peak for server in servers] == [share] * number
    replies, before, peak, seconds = map(float, done.stdout.split())
    assert replies == concurrency
    return {
        "in_flight": concurrency,
        "mb_before": before,
        "mb_peak": peak,
        "cpu_us_per_call": round(1e6 * seconds / concurrency),
    }


def run_on_simulated_clock(work: Coroutine) -> None:
    """Run `work` on a loop whose clock jumps to the next moment at which something is due."""
    now = 1000.0

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list:
            nonlocal now
            now += timeout or 0
            return super().select(0)

    real, time.monotonic = time.monotonic, lambda: now
    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Selector())) as runner:
            runner.run(work)
    finally:
        time.monotonic = real


def cache(folder: Path, count: int = 1_000_000, most: int = 1000) -> dict:
    """A cache of many calls takes at most so many bytes a row, and opens at once; what the rest costs, in CPU time.

    Rows are made within SQLite, with random keys, from replies of up to 2,000 characters.
    """
    path, generator = folder / "calls.sqlite", random.Random(0)
    pages = " ".join(page.read_text() for page in sorted((ROOT / "musiccli/manual").glob("*.md")))
    sentences = re.split(r"(?<=\.)\s+", pages)
    texts = [
        " ".join(generator.sample(sentences, generator.randint(2, 20)))[:2000] for _ in range(500)
    ]
    results = {"rows": count} | fill(path, count, texts)
    results["bytes_per_row"] = round(path.stat().st_size / count)
    seconds, store = cpu_seconds(lambda: Store(path))
    results["open_ms"] = round(1000 * seconds, 1)
    keys = store.execute(
        "select key from calls where rowid % ? = 0 order by key", max(1, count // 20_000)
    )
    keys = [key for (key,) in keys.fetchall()]
    seconds, _ = cpu_seconds(lambda: [store.get(key) for key in keys])
    results["get_us"] = round(1e6 * seconds / len(keys))
    replies = [{"text": generator.choice(texts), "finish": "stop"} for _ in keys]
    seconds, _ = cpu_seconds(lambda: [store.put(os.urandom(16), reply, "m") for reply in replies])
    results["put_us"] = round(1e6 * seconds / len(keys))
    seconds, _ = cpu_seconds(store.models)
    results["models_s"] = round(seconds, 2)
    middle = store.execute("select at from calls where rowid = ?", count // 10).fetchone()[0]
    seconds, removed = cpu_seconds(lambda: store.prune(middle))
    results |= {"removed": removed, "prune_s": round(seconds, 1)}
    results["bytes_per_row_then"] = round(path.stat().st_size / (count + len(keys) - removed))
    store.close()
    assert results["bytes_per_row"] < most, results
    assert results["bytes_per_row_then"] < 1.1 * results["bytes_per_row"], results
    return results


def fill(path: Path, count: int, texts: list[str]) -> dict:
    """Put many calls into a new store, made within 20,000 seconds, with replies of these texts."""
    store = Store(path)
    for number, text in enumerate(texts):
        store.put(b"%d" % number, {"text": text, "finish": "stop", "prompt_tokens": 700}, "m")
    store.execute("create temp table samples as select rowid as n, size, reply from calls")
    store.execute("delete from calls")
    store.execute("pragma cache_size = -500000")
    start, step = int(time.time()) - 20_000, 100_000
    for first in range(0, count, step):
        store.execute(
            "with recursive numbers(i) as (select ? union all select i + 1 from numbers where i < ?) "
            "insert into calls select randomblob(16), 1, ? + i * 20000 / ?, size, reply "
            "from numbers join samples on n = 1 + i * 7919 % ?",
            first,
            min(first + step, count) - 1,
            start,
            count,
            len(texts),
        )
    store.execute("pragma wal_checkpoint(truncate)")
    store.close()
    return {"reply_bytes": round(sum(map(len, texts)) / len(texts))}


def cpu_seconds(work) -> tuple:
    """The CPU time that `work()` takes, which neighbors on a busy machine do not change much, and what it returns."""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


RUNS = {
    "chaos": chaos,
    "faults": each_fault,
    "kills": kills,
    "memory": memory,
    "addresses": addresses,
    "flood": flood,
    "cache": cache,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What simulate promises, at full size.")
    parser.add_argument("run", choices=RUNS)
    allow_many_connections()
    chosen = parser.parse_args().run
    with tempfile.TemporaryDirectory(prefix="music-acceptance-") as folder:
        print(json.dumps({chosen: RUNS[chosen](Path(folder))}, indent=2))


if __name__ == "__main__":
    main()
