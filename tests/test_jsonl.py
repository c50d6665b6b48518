"""Reading and writing JSONL: what is read, how a bad file is named, and whole output files."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from backports import zstd
from build import lines, write
from console import COMMAND, environment, start, wait_until
from peak_memory import reporting_peak

from musiccli.core import jsonl
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import identity_key

GZ, ZST = partial(gzip.compress, mtime=0), zstd.compress


def record(identity, text="q"):
    return {"id": identity, "messages": [{"role": "user", "content": text}]}


def read(*paths, skip=False, unique=True, parse=lambda record: record):
    reports = []
    rejects = jsonl.Rejects(skip=skip, report=reports.append)
    return list(jsonl.read(map(str, paths), parse, rejects, unique=unique)), reports


def refused(*paths, error=InputError):
    with pytest.raises(error) as caught:
        read(*paths)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name, pack", [("in.jsonl", bytes), ("in.jsonl.gz", GZ), ("in.jsonl.zst", ZST)]
)
@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "x"}\n',
        b'{"id": "x"}',
        b'{"id": "x"}\r\n',
        b'\xef\xbb\xbf{"id": "x"}\n',
        b'\n \n\t{"id": "x"} \n\r\n\n',
    ],
    ids=["plain", "no line end", "windows", "byte order mark", "blank lines"],
)
def test_a_record_is_read_from_any_file(folder, name, pack, line):
    (folder / name).write_bytes(pack(line))
    assert read(name) == ([{"id": "x"}], [])


def test_the_line_number_counts_blank_lines(folder):
    (folder / "in.jsonl").write_bytes(b'\n\n{"id": 1}\n\n{"id": 2}\n')
    assert [record.where for record in read("in.jsonl")[0]] == ["in.jsonl:3", "in.jsonl:5"]


@pytest.mark.parametrize("paths", [[], ["-"]])
def test_standard_input_is_read_where_no_file_is_named(monkeypatch, paths):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines({"id": "x"}))))
    [record], _ = read(*paths)
    assert (record, record.where) == ({"id": "x"}, "<stdin>:1")


def test_files_and_standard_input_are_read_in_the_order_given(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines({"id": 2}))))
    write(folder / "1.jsonl", {"id": 1})
    write(folder / "3.jsonl", {"id": 3})
    assert [record.where for record in read("1.jsonl", "-", "3.jsonl")[0]] == [
        "1.jsonl:1",
        "<stdin>:1",
        "3.jsonl:1",
    ]


@pytest.mark.parametrize("name, pack", [("in.gz", GZ), ("in.zst", ZST)])
def test_compressed_files_that_were_joined_are_read_to_the_end(folder, name, pack):
    (folder / name).write_bytes(
        pack(lines({"id": 1})) + pack(lines({"id": 2})[:5]) + pack(lines({"id": 2})[5:])
    )
    assert read(name)[0] == [{"id": 1}, {"id": 2}]


@pytest.mark.parametrize("name, pack", [("in.gz", GZ), ("in.zst", ZST)])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.999])
def test_a_compressed_file_that_was_cut_off_is_damaged_wherever_it_was_cut(
    folder, name, pack, fraction
):
    whole = pack(lines(*({"id": number, "text": os.urandom(50).hex()} for number in range(1000))))
    (folder / name).write_bytes(whole[: int(len(whole) * fraction)])
    assert refused(name).startswith(f"{name}: damaged ")


@pytest.mark.parametrize("name", ["in.gz", "in.zst"])
def test_a_suffix_that_promises_too_much_is_named(folder, name):
    write(folder / name, {"id": 1})
    assert refused(name).startswith(f"{name}: damaged at its start: ")


@pytest.mark.parametrize("name", ["in.csv", "in.tsv.gz", "in.Parquet"])
def test_a_table_is_refused_by_its_suffix_and_sent_to_sample(folder, name):
    (folder / name).write_bytes(b"prompt,chosen\n")
    assert refused(name) == f"{name}: is no JSONL; music sample makes records of such files"


def test_a_list_of_records_is_sent_to_sample(folder):
    (folder / "in.json").write_bytes(b'[{"id": 1}]')
    assert refused("in.json", error=RecordError) == (
        "in.json:1: is JSON, but not an object; a record is {...}, one a line; music sample makes "
        "records of such files"
    )


@pytest.mark.parametrize("pack, suffix", [(GZ, ".gz"), (ZST, ".zst")])
def test_compressed_bytes_under_a_plain_name_are_recognized(folder, pack, suffix):
    (folder / "in.jsonl").write_bytes(pack(lines({"id": "x" * 100})))
    assert (
        refused("in.jsonl", error=RecordError)
        == f"in.jsonl:1: is compressed; name the file {suffix}, or unpack it"
    )


@pytest.mark.parametrize(
    "line, expected",
    [
        (b"hello", "is not JSON: unexpected character, expected a JSON value (column 1)"),
        (b"{", "is not JSON: it begins a value of several lines; expected one record a line, as"),
        (b"[", "is not JSON: it begins a value of several lines; expected one record a line, as"),
        *(
            (value, None)
            for value in (
                b'{"id": 2',
                b'{"id": NaN}',
                b'{"id": 1e999}',
                b"{'id': 2}",
                b'{"id": 2},',
            )
        ),
        (b'{"id": "\xff"}', "is not UTF-8 (byte 9)"),
        ('{"id": "ü"}'.encode("latin-1"), "is not UTF-8 (byte 9)"),
        ('{"id": 2}'.encode("utf-16"), "is not UTF-8 (byte 1)"),
        *(
            (value, "is JSON, but not an object; a record is {...}")
            for value in (b"[1]", b"null", b'"text"', b"1")
        ),
        (b"[" * 5000, None),
        (
            b'{"id": 2, "x": ' + b"[" * 250 + b"]" * 250 + b"}",
            "has more than 250 lists and objects in each other",
        ),
    ],
    ids=lambda value: repr(value)[:14],
)
def test_a_bad_line_is_named_and_can_be_skipped(folder, line, expected):
    write(folder / "in.jsonl", {"id": 1}, line, {"id": 3})
    message = refused("in.jsonl", error=RecordError)
    assert message.startswith(
        "in.jsonl:2: is not JSON: " if expected is None else f"in.jsonl:2: {expected}"
    )
    if b"\n" not in line:
        assert read("in.jsonl", skip=True) == ([{"id": 1}, {"id": 3}], [message])


@pytest.mark.parametrize(
    "written, text",
    [
        (rb"Nice \ud83d", "Nice \ufffd"),
        (rb"\uDE00 nice", "\ufffd nice"),
        (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\\ud83d \\\ud83d", "\\ud83d \\\ufffd"),
    ],
)
def test_half_of_a_pair_of_surrogates_is_replaced(folder, written, text):
    (folder / "in.jsonl").write_bytes(
        b'{"id": "TEXT", "x": 98765432109876543210}\n'.replace(b"TEXT", written)
    )
    assert read("in.jsonl") == ([{"id": text, "x": 98765432109876543210}], [])


def test_a_line_with_half_of_a_pair_that_is_no_json_is_named(folder):
    write(folder / "in.jsonl", rb'{"id": "\ud83d" x}')
    assert refused("in.jsonl", error=RecordError).startswith("in.jsonl:1: is not JSON: ")


def test_integers_beyond_64_bits_and_deep_values_pass_untouched(folder):
    line = b'{"id":1,"x":[%d,-%d,%d],"deep":%s}\n' % (
        1 << 128,
        1 << 64,
        (1 << 63) + 1,
        b"[" * 249 + b"]" * 249,
    )
    (folder / "in.jsonl").write_bytes(line)
    output = jsonl.open_output("out.jsonl")
    for record in jsonl.read(["in.jsonl"], lambda record: record):
        output.write(record)
    output.close()
    assert (folder / "out.jsonl").read_bytes() == line


def test_a_torn_last_line_says_that_the_file_ends_in_it(folder):
    (folder / "in.jsonl").write_bytes(b'{"id": 1}\n{"id": "tw')
    message = refused("in.jsonl", error=RecordError)
    assert message.startswith("in.jsonl:2: is not JSON: ") and message.endswith(
        "; the file ends within this line"
    )


def test_a_line_that_is_too_long_is_a_bad_record_in_bounded_memory(folder):
    with open(folder / "in.jsonl", "wb") as file:
        file.write(lines({"id": 1}) + b'{"id": "')
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + lines({"id": 3}))
    code = (
        "import resource; from musiccli.core import jsonl\n"
        "reports = []; rejects = jsonl.Rejects(skip=True, report=reports.append)\n"
        "low = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "records = list(jsonl.read(['in.jsonl'], lambda record: record, rejects))\n"
        "print([record['id'] for record in records], reports, low)"
    )
    command = reporting_peak(folder / "peak", [sys.executable, "-c", code])
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results, _, before = done.stdout.rpartition(" ")
    assert (
        results
        == "[1, 3] ['in.jsonl:2: the line is longer than 32 MB; a record is one conversation']"
    )
    assert int((folder / "peak").read_text()) - int(before) < 110_000


def test_a_line_of_nearly_the_limit_is_read(folder):
    write(folder / "in.zst", {"id": "x" * (20 << 20)})
    (folder / "in.zst").write_bytes(ZST((folder / "in.zst").read_bytes()))
    [record], _ = read("in.zst")
    assert len(record["id"]) == 20 << 20


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
@pytest.mark.parametrize("name, pack", [("in.jsonl", bytes), ("in.gz", GZ), ("in.zst", ZST)])
def test_a_file_without_a_record_is_refused(folder, name, pack, content):
    (folder / name).write_bytes(pack(content))
    assert refused(name) == f"{name}: is empty; expected JSONL, one record a line"


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_empty_standard_input_asks_about_the_command_before(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert (
        refused("-")
        == "<stdin>: is empty; expected JSONL, one record a line; did the command before it fail?"
    )


def test_a_missing_file_and_a_folder_are_refused_before_anything_is_read(folder):
    write(folder / "in.jsonl", b"not even JSON")
    (folder / "empty.jsonl").touch()
    for path, expected in (
        ("none.jsonl", "no such file"),
        (".", "is a folder; expected a JSONL file"),
        ("empty.jsonl", "is empty; expected JSONL, one record a line"),
    ):
        with pytest.raises(InputError) as caught:
            jsonl.read(["in.jsonl", path], lambda record: record)
        assert str(caught.value) == f"{path}: {expected}"


def test_a_file_without_permission_is_refused(folder):
    write(folder / "in.jsonl", {"id": 1}).chmod(0)
    folder.chmod(0o755)
    assert without_root_rights(lambda: refused("in.jsonl")) == "in.jsonl: no permission to read it"


def test_a_named_pipe_is_read(folder):
    os.mkfifo("pipe")
    writer = subprocess.Popen(["sh", "-c", """echo '{"id": 1}' > pipe"""])
    assert read("pipe")[0] == [{"id": 1}]
    assert writer.wait() == 0


def test_a_second_record_of_the_same_id_is_refused_across_files(folder):
    write(folder / "1.jsonl", record("x"), record("y"))
    write(folder / "2.jsonl", record("z"), record("x"))
    message = "2.jsonl:2: id: 'x' names an earlier record, too; ids must be unique"
    assert refused("1.jsonl", "2.jsonl", error=RecordError) == message
    records, reports = read("1.jsonl", "2.jsonl", skip=True)
    assert ([record["id"] for record in records], reports) == (["x", "y", "z"], [message])
    assert len(read("1.jsonl", "2.jsonl", unique=False)[0]) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "x", "branch": "rejected"},
        {"id": "x", "sample": 1},
        {"id": "x", "best_of": 4},
        {"id": "x", "models": {"a": "rm", "b": "base"}},
        {"id": 1},
        {"id": "1"},
        {"id": "x", "sample": [1, {}]},
    ],
)
def test_branches_samples_and_pools_of_one_id_are_records_of_their_own(folder, fields):
    write(folder / "in.jsonl", {"id": "x"}, {"id": "1" if fields["id"] == 1 else 1}, fields)
    assert len(read("in.jsonl")[0]) == 3


def test_contests_of_one_id_between_other_models_are_records_of_their_own(folder):
    contest = {"id": "x", "best_of": 2, "models": {"a": "rm", "b": "base"}}
    other = contest | {"models": {"a": "rm", "b": "other"}}
    swapped = contest | {"models": {"b": "base", "a": "rm"}}
    write(folder / "in.jsonl", contest, other, swapped)
    records, reports = read("in.jsonl", skip=True)
    assert [record["models"]["b"] for record in records] == ["base", "other"]
    assert reports == ["in.jsonl:3: id: 'x' names an earlier record, too; ids must be unique"]


def test_the_key_of_a_record_that_is_no_contest_stays():
    """Keys are what they were before contests had models, so that stored ones are met again."""
    assert identity_key({"id": "x", "branch": "chosen", "sample": 1}) == 0x1F909BA0C26D6B26
    assert identity_key({"id": 7, "best_of": 4, "a": [], "b": []}) == 0x8943735B3720D203


def test_duplicates_are_found_among_many(folder):
    write(
        folder / "in.jsonl",
        *({"id": f"r{number}"} for number in range(5000)),
        {"id": "r77"},
        {"id": "r4999"},
    )
    assert len(read("in.jsonl", skip=True)[0]) == 5000


def test_rejects_keep_each_bad_record_with_its_error(folder):
    write(folder / "in.jsonl", {"id": 1, "zebra": 1.5}, b'{"broken', b"[2]", {"id": 1}, b"\xff")
    rejects = jsonl.Rejects(skip=True, path="bad.jsonl.gz")
    list(jsonl.read(["in.jsonl"], lambda record: record, rejects))
    rejects.close()
    rejected = [
        json.loads(line)
        for line in gzip.decompress((folder / "bad.jsonl.gz").read_bytes()).splitlines()
    ]
    assert [next(iter(fields.items())) for fields in rejected] == [
        ("line", '{"broken'),
        ("line", "[2]"),
        ("id", 1),
        ("line", "\ufffd"),
    ]
    assert [fields["error"].split(": ")[0] for fields in rejected] == [
        f"in.jsonl:{number}" for number in (2, 3, 4, 5)
    ]
    assert rejects.count == 4


def test_only_the_first_ten_bad_records_are_said(folder):
    write(folder / "in.jsonl", *[b"?"] * 30)
    reports = read("in.jsonl", skip=True)[1]
    assert reports[10:] == ["more bad records follow; they are counted, and kept by `rejects` FILE"]


@pytest.mark.parametrize(
    "name, unpack",
    [
        ("out.jsonl", bytes),
        ("out.jsonl.gz", gzip.decompress),
        ("out.jsonl.zst", zstd.decompress),
    ],
)
def test_an_output_appears_when_it_is_closed_and_can_be_read_again(folder, name, unpack):
    output = jsonl.open_output(name)
    for number in range(3):
        output.write({"id": number})
    assert not (folder / name).exists()
    output.close()
    assert unpack((folder / name).read_bytes()) == b'{"id":0}\n{"id":1}\n{"id":2}\n'
    assert len(read(name)[0]) == output.count == 3 and os.listdir() == [name]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
def test_a_discarded_output_leaves_what_was_there(folder, name):
    (folder / name).write_bytes(b"before")
    output = jsonl.open_output(name)
    output.write({"id": 1})
    output.discard()
    output.close()
    assert (folder / name).read_bytes() == b"before" and os.listdir() == [name]


def test_the_same_records_make_the_same_compressed_bytes(folder):
    for name in ("1.gz", "2.gz"):
        output = jsonl.open_output(name)
        output.write({"id": 1})
        output.close()
    assert (folder / "1.gz").read_bytes() == (folder / "2.gz").read_bytes()


def test_an_output_over_its_own_input_keeps_every_record(folder):
    write(folder / "in.jsonl", *({"id": number} for number in range(2000)))
    output = jsonl.open_output("in.jsonl")
    for parsed in jsonl.read(["in.jsonl"], lambda record: record):
        output.write(parsed)
    output.close()
    assert len(read("in.jsonl")[0]) == 2000


def test_an_output_follows_a_link_and_a_private_file_stays_private(folder):
    (folder / "far").mkdir()
    write(folder / "far" / "real.jsonl", {"id": 0}).chmod(0o600)
    os.symlink("far/real.jsonl", "link.jsonl")
    output = jsonl.open_output("link.jsonl")
    output.write({"id": 1})
    output.close()
    assert (
        os.path.islink("link.jsonl")
        and (folder / "far" / "real.jsonl").read_bytes() == b'{"id":1}\n'
    )
    assert os.stat("far/real.jsonl").st_mode & 0o777 == 0o600 and os.listdir("far") == [
        "real.jsonl"
    ]


@pytest.mark.parametrize(
    "path, expected",
    [
        (".", ".: is a folder; name a file to write"),
        ("none/out.jsonl", "none/out.jsonl: cannot be written: there is no such folder"),
        ("x" * 300, f"{'x' * 300}: cannot be written: File name too long"),
    ],
    ids=["folder", "no folder", "long name"],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(folder, path, expected):
    with pytest.raises(InputError) as caught:
        jsonl.open_output(path)
    assert str(caught.value) == expected and os.listdir() == []


def test_an_output_in_a_read_only_folder_is_refused_at_once(folder):
    def refusal():
        with pytest.raises(InputError) as caught:
            jsonl.open_output("out.jsonl")
        return str(caught.value)

    folder.chmod(0o555)
    assert without_root_rights(refusal) == "out.jsonl: cannot be written: Permission denied"
    assert os.listdir() == []


def test_a_device_is_written_in_place():
    output = jsonl.open_output("/dev/null")
    output.write({"id": 1})
    output.close()
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("size", [1, 1 << 20], ids=["at the end", "on the way"])
def test_a_full_disk_is_one_line(size):
    output = jsonl.open_output("/dev/full")
    with pytest.raises(
        InputError, match=r"^/dev/full: cannot be written: No space left on device$"
    ):
        output.write({"id": "x" * size})
        output.close()
    output.discard()


def test_a_named_pipe_is_written_as_records_come(folder):
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    output = jsonl.open_output("pipe")
    output.write({"id": 1})
    output.close()
    assert reader.communicate()[0] == b'{"id":1}\n'


def test_a_killed_run_leaves_no_target(folder):
    with start("pair", "-o", "out.jsonl") as run:
        run.stdin.write(b"{}")
        wait_until(os.listdir)
        run.send_signal(signal.SIGKILL)
    assert not (folder / "out.jsonl").exists()


@pytest.mark.slow
def test_finished_records_reach_the_next_command_while_more_are_awaited():
    code = (
        "import time; from musiccli.core import jsonl; output = jsonl.open_output()\n"
        "output.write({'id': 1}); output.write({'id': 2}); time.sleep(600)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert [run.stdout.readline() for _ in range(2)] == [b'{"id":1}\n', b'{"id":2}\n']
    run.kill()
    run.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed, expected",
    [
        ("<&-", "music pair: error: <stdin>: is closed; name a file\n"),
        (">&-", "music pair: error: <stdout>: is closed; write to a file with --output\n"),
        ("<&- 2>&-", ""),
    ],
)
def test_closed_streams_are_named_and_never_mixed_up(closed, expected):
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *COMMAND, "pair"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", [None, "1"])
def test_standard_output_on_a_full_disk_is_one_line(unbuffered):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "show"],
            input=lines({"id": "x", "messages": messages}),
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED=unbuffered),
        )
    assert (done.returncode, done.stderr) == (
        2,
        b"music show: error: <stdout>: cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("unbuffered", [None, "1"])
def test_a_line_reaches_a_pipe_whole_however_long_it_is(unbuffered):
    code = (
        "import signal; from musiccli.core import jsonl\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
        "output = jsonl.open_output()\n"
        "for _ in range(20): output.write({'id': 'x' * 1_000_000})\n"
        "output.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=environment(PYTHONUNBUFFERED=unbuffered),
    ) as run:
        assert [len(line) for line in run.stdout] == [1_000_010] * 20


def without_root_rights(work):
    """The string that `work` returns, run by another user than root, who may read every file."""
    if os.geteuid():
        return work()
    reader, writer = os.pipe()
    if not os.fork():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with open(reader) as result:
        return result.read()


ASKING = """
import subprocess, sys
from musiccli.core import jsonl
def ask():
    try:
        return input()
    except EOFError:
        return None
with jsonl.reserved_stdin():
    answers = [ask(), sys.stdin.read(), subprocess.run("cat", capture_output=True).stdout]
    print(answers, [record["id"] for record in jsonl.read([], lambda record: record)])
print(repr(sys.stdin.read()))
"""


def test_only_records_are_read_from_standard_input():
    """A library that asks a question, or starts a program that does, reads no record."""
    done = subprocess.run(
        [sys.executable, "-c", ASKING], input=b'{"id": 1}\n{"id": 2}\n', capture_output=True
    )
    assert done.stdout == b"[None, '', b''] [1, 2]\n''\n", done.stderr
