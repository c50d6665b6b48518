"""What `music show` shows where, and that a record's text is only ever text."""

import json
import os
import pty
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from unicodedata import category

import preloaded
import pytest
from console import COMMAND

from musiccli.core import jsonl, records
from musiccli.core.records import Record
from musiccli.core.text_safety import visible
from musiccli.show.differences import changed_spans
from musiccli.show.html import html_page
from musiccli.show.terminal import terminal_text
from musiccli.show.view import record_view

DATA = Path(__file__).parents[2] / "shared" / "data"


def messages(*contents, system=None):
    first = [{"role": "system", "content": system}] if system else []
    return first + [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(contents)
    ]


def preference(**fields):
    return Record(
        {
            "id": "p1",
            "chosen": messages("hello there", "one two three four"),
            "rejected": messages("hello there", "one two five four"),
            "metadata": {},
            **fields,
        }
    )


def terminal(record, width=80, color=False):
    return "".join(terminal_text([record], width=width, color=color))


def page(*records):
    return "".join(html_page(records, "title"))


def run(*arguments, records=(), **options):
    text = "".join(json.dumps(record) + "\n" for record in records)
    return subprocess.run(
        [*preloaded.command(), "show", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        **options,
    )


def test_a_corruption_is_named():
    record = preference(corruption={"kind": "reply", "turn": 2, "distance": 0})
    assert terminal(record).splitlines()[1] == "corruption reply at turn 2"
    assert "<span>corruption reply at turn 2</span>" in page(record)


def test_a_pair_shares_its_prefix_and_then_stands_in_two_columns():
    shown = terminal(
        preference(
            metadata={"subset": "hep-go"},
            scores={"rm": {"chosen": 1.5, "rejected": -0.25}},
            winner="chosen",
        ),
        width=60,
    )
    assert (
        shown
        == """\
p1 · preference ────────────────────────────────────────────
chosen won · subset: hep-go

user
  hello there

╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ different from here ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌
★ chosen · rm 1.500           │ rejected · rm -0.250
──────────────────────────────┼─────────────────────────────
assistant                     │ assistant
  one two three four          │   one two five four
                              │

"""
    )


def test_in_a_narrow_terminal_one_side_stands_under_the_other():
    shown = terminal(preference(), width=40)
    assert "│" not in shown
    assert shown.index("chosen\nassistant\n  one two three four") < shown.index(
        "rejected\nassistant\n  one two five"
    )


def test_contrasted_turns_are_marked_with_the_instruction_that_was_answered():
    record = preference(contrast=[{"message": 1, "instruction": "Count to five instead"}])
    chosen, rejected = (column[0] for column in record_view(record).columns)
    assert (chosen.label, chosen.instruction) == ("assistant", None)
    assert (rejected.label, rejected.instruction) == (
        "assistant · contrasted",
        "Count to five instead",
    )
    assert "answers instead: Count to five instead" in " ".join(terminal(record, width=140).split())


def test_turn_scores_stand_at_their_turns():
    record = Record(
        {
            "id": "c",
            "messages": messages("q1", "r1", "q2", "r2", system="be kind"),
            "metadata": {},
            "scores": {"rm": 0.5},
            "turn_scores": {"rm": [0.125, 0.5]},
        }
    )
    shown = record_view(record)
    assert shown.captions == ["rm 0.500"]
    assert [message.label for message in shown.columns[0]] == [
        "system",
        "user",
        "assistant · rm 0.125",
        "user",
        "assistant · rm 0.500",
    ]


def test_turn_scores_of_a_pair_go_on_counting_after_the_shared_part():
    record = Record(
        {
            "id": "p",
            "chosen": messages("q", "r", "q", "x"),
            "rejected": messages("q", "r", "q", "y"),
            "turn_scores": {"rm": {"chosen": [1, 2], "rejected": [1, 3]}},
        }
    )
    shown = record_view(record)
    assert [message.label for message in shown.shared] == ["user", "assistant · rm 1.000", "user"]
    assert [column[0].label for column in shown.columns] == [
        "assistant · rm 2.000",
        "assistant · rm 3.000",
    ]


def test_turn_scores_of_a_conversation_that_was_cut_stand_at_its_last_turns():
    record = Record(
        {
            "id": "c",
            "messages": messages("q", "r", "q", "r", "q", "r"),
            "turn_scores": {"rm": [1, 2]},
        }
    )
    assert [message.label for message in record_view(record).columns[0][1::2]] == [
        "assistant",
        "assistant · rm 1.000",
        "assistant · rm 2.000",
    ]


def test_a_branch_shows_where_the_simulation_began():
    record = Record(
        {
            "id": "b",
            "messages": messages("q", "r", "q2", "r2"),
            "branch": "rejected",
            "sample": 2,
            "seed_messages": 2,
            "contrast": [{"message": 3, "instruction": "other"}],
        }
    )
    lines = terminal(record, width=40).splitlines()
    assert lines[1] == "branch rejected · sample 2"
    assert [line for line in lines if line.startswith(("user", "assistant", "╌", "  answers"))] == [
        "user",
        "assistant",
        "╌╌╌╌╌╌╌╌╌ simulated from here ╌╌╌╌╌╌╌╌╌╌",
        "user",
        "assistant · contrasted",
        "  answers instead: other",
    ]


def test_whom_the_user_plays_and_which_messages_need_the_history_is_shown():
    branch = {
        "id": "s",
        "messages": messages("q1", "a1", "q2", "a2"),
        "branch": "chosen",
        "user_persona": {"who": "a cook", "goal": "a soup"},
        "follow_ups": [{"message": 2, "kind": "change"}, {"message": 3, "kind": "refer"}],
        "satisfied": True,
    }
    view = record_view(records.parse_branch(Record(branch)))
    assert view.facts == ["branch chosen", "sample 0", "user: a cook; a soup", "ended by its user"]
    labels = [message.label for message in [*view.shared, *view.columns[0]]]
    assert labels == ["user", "assistant", "user · change", "assistant"]


def test_a_contest_names_whose_pick_is_which_and_its_votes():
    vote = {"judge": "llm", "order": "ab", "winner": None, "explanation": "cannot say"}
    record = Record(
        {
            "id": "x",
            "best_of": 4,
            "a": messages("q", "one"),
            "b": messages("q", "two"),
            "winner": None,
            "votes": [vote],
            "models": {"a": "new", "b": "old"},
            "picks": {"a": 3, "b": 0},
        }
    )
    shown = record_view(record)
    assert (shown.kind, shown.facts, shown.winner) == (
        "contest, best of 4",
        ["verdict unreadable"],
        None,
    )
    assert shown.captions == ["a · new's pick, sample 3", "b · old's pick, sample 0"]
    assert shown.votes == [("llm · order ab · unreadable", "cannot say")]


def test_sides_of_the_same_text_are_shown_once():
    record = Record({"id": "x", "a": messages("q", "words"), "b": messages("q", "words")})
    for shown in (terminal(record), page(record)):
        assert shown.count("words") == 1 and "both sides are the same" in shown


def test_sides_of_different_length_leave_the_shorter_one_blank():
    record = Record({"id": "x", "a": messages("q", "r", "more", "text"), "b": messages("q", "r")})
    assert "more" in terminal(record) and page(record).count('class="empty"') == 2


@pytest.mark.parametrize("odd", [7, "text", [], {}, [7], [[]], {"x": []}, [{"message": []}], None])
def test_odd_values_in_fields_that_others_wrote_are_stepped_over(odd):
    fields = (
        "contrast",
        "scores",
        "turn_scores",
        "votes",
        "winner",
        "models",
        "picks",
        "best_of",
        "seed_messages",
        "branch",
        "sample",
        "first_divergence",
        "follow_ups",
        "user_persona",
        "satisfied",
    )
    for record in (preference(), Record({"id": 1, "messages": messages("q", "four")})):
        assert "four" in terminal(Record(record | dict.fromkeys(fields, odd)))


@pytest.mark.parametrize(
    "left, right, marked",
    [
        ("one two three four", "one two five four", (["three"], ["five"])),
        ("one two three", "one two three", ([], [])),
        ("the cat sat.", "the cat sat!", (["."], ["!"])),
        ("one two three", "one two three four", ([], ["four"])),
        ("entirely other words", "nothing to compare here", ([], [])),
        ("same words\n\nhere", "same words here", ([], [])),
    ],
)
def test_words_that_differ_are_marked_where_texts_are_similar(left, right, marked):
    spans = changed_spans(left, right)
    assert (
        tuple(
            [text[start:end] for start, end in text_spans]
            for text, text_spans in zip((left, right), spans, strict=True)
        )
        == marked
    )


def test_marks_are_drawn_in_color_and_in_html():
    assert "\x1b[1;4;32mthree\x1b[0m" in terminal(preference(), color=True)
    assert "one two <mark>three</mark> four" in page(preference())


HOSTILE_TEXT = (
    "\x1b[31mred\x1b]0;title\x07 \x9b1m \u202eright to left\u202c \u2066x\u2069 z\u200bw "
    "\u2028 \U000e0041 \x7f\x00 \ufeff lone\rreturn"
)


@pytest.mark.parametrize(
    "text, seen",
    [
        ("\x1b[31m", "␛[31m"),
        ("\x07", "␇"),
        ("\x7f", "␡"),
        ("a\rb", "a␍b"),
        ("a\r\nb", "a\nb"),
        ("\x9b", "⟨U+009B⟩"),
        ("\u202e", "⟨U+202E⟩"),
        ("\u200b", "⟨U+200B⟩"),
        ("\u2029", "⟨U+2029⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("👩‍👧 café 日本語 עברית", "👩‍👧 café 日本語 עברית"),
    ],
)
def test_control_and_invisible_characters_are_written_out(text, seen):
    assert visible(text) == seen


def everywhere(text):
    """A record that carries `text` in every place that is shown."""
    vote = {"judge": text, "order": text, "winner": text, "explanation": text}
    return Record(
        {
            "id": text,
            "chosen": messages(text, f"a b c {text}", system=text),
            "rejected": messages(text, f"a b d {text}", system=text),
            "metadata": {text: text, "deep": {"x": text}},
            "contrast": [{"message": 2, "instruction": text}],
            "scores": {text: {"chosen": 1, "rejected": 0}},
            "turn_scores": {text: {"chosen": [1], "rejected": [0]}},
            "winner": "chosen",
            "votes": [vote],
            "best_of": text,
            "models": {"chosen": text},
            "picks": {"chosen": text},
        }
    )


@pytest.mark.parametrize("width", [40, 100])
def test_no_control_character_of_a_record_reaches_the_terminal(width):
    shown = terminal(everywhere(HOSTILE_TEXT), width=width)
    assert [
        char for char in shown if char != "\n" and category(char) in ("Cc", "Cf", "Zl", "Zp")
    ] == []
    colored = re.sub(
        r"\x1b\[[0-9;]*m", "", terminal(everywhere(HOSTILE_TEXT), width=width, color=True)
    )
    assert [line.rstrip() for line in colored.splitlines()] == shown.splitlines()


def test_no_control_character_of_a_record_reaches_the_page():
    assert [
        char
        for char in page(everywhere(HOSTILE_TEXT))
        if char != "\n" and category(char) in ("Cc", "Cf")
    ] == []


def test_markup_and_emoji_codes_of_rich_are_only_text():
    shown = terminal(everywhere("[bold]x[/] :smile: [link=y]"), width=300)
    assert shown.count("[bold]x[/] :smile: [link=y]") >= 15


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_of_a_record_is_only_text():
    hostile_text = '</p><script>alert(1)</script><img src=x onerror="y"> "quoted" \' & &lt;'
    hostile = Elements(page(everywhere(hostile_text)))
    harmless = Elements(page(everywhere("harmless")))
    assert hostile.open == harmless.open == []
    assert not {"script", "img"} & {tag for tag, _ in hostile.elements}
    assert {name for _, attributes in hostile.elements for name in attributes} == {
        name for _, attributes in harmless.elements for name in attributes
    }
    assert [tag for tag, _ in hostile.elements if tag != "mark"] == [
        tag for tag, _ in harmless.elements if tag != "mark"
    ]


def test_the_page_asks_for_nothing():
    text = page(preference())
    assert not re.search(r"https?:|src=|href=|url\(|@import", text)
    assert "default-src 'none'" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, shown",
    [
        (["-n", "2"], ["p0", "p1"]),
        (["--id", "p2", "--id", "p0"], ["p0", "p2"]),
        (["--where", "metadata.subset=x"], ["p0", "p2"]),
        (["--where", "subset=x", "--where", "metadata.level=2"], ["p2"]),
        (["--where", "metadata.deep.flag=true"], ["p1"]),
        (["--where", "winner=null"], ["p0", "p1", "p2"]),
        (["--where", "subset=x", "-n", "1"], ["p0"]),
    ],
)
def test_a_choice_of_records(arguments, shown):
    metadata = [
        {"subset": "x"},
        {"subset": "y", "deep": {"flag": True}},
        {"subset": "x", "level": 2},
    ]
    done = run(
        *arguments,
        records=[
            preference(id=f"p{number}", metadata=value) for number, value in enumerate(metadata)
        ],
    )
    assert re.findall(r"^(\S+) · preference", done.stdout, re.M) == shown
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_no_matching_record_is_reported(tmp_path):
    done = run("--id", "nobody", records=[preference()])
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "music show: no record matches\n")
    page = tmp_path / "page.html"
    assert run("--id", "nobody", "--html", page, records=[preference()]).returncode == 1
    assert not page.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, input_records, message",
    [
        (
            ["--where", "metadata"],
            [{}],
            "--where: expected FIELD=VALUE, like metadata.subset=llmbar-natural",
        ),
        (
            [],
            [{"id": "x"}],
            "<stdin>:1: has neither messages, nor chosen and rejected, nor a and b; music sample "
            "reads the rows of datasets",
        ),
        (
            [],
            [],
            "<stdin>: is empty; expected JSONL, one record a line; did the command before it fail?",
        ),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_status_2(arguments, input_records, message):
    done = run(*arguments, records=input_records)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"music show: error: {message}\n")


@pytest.mark.slow
def test_a_bad_record_can_be_stepped_over():
    done = run("--on-error", "skip", records=[{"id": "x"}, preference()])
    assert done.returncode == 1 and "p1 · preference" in done.stdout
    assert done.stderr.splitlines()[-1].endswith("1 shown; 1 failed")


@pytest.mark.slow
def test_in_a_pipe_there_is_no_color_and_a_reader_that_leaves_is_no_error():
    text = "".join(json.dumps(preference(id=f"p{number}")) + "\n" for number in range(2000))
    with subprocess.Popen(
        [*COMMAND, "show"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout, stdout = None, process.stdout
        first = []

        def read_one():
            first.append(stdout.readline())
            stdout.close()

        import threading

        reader = threading.Thread(target=read_one)
        reader.start()
        _, stderr = process.communicate(text.encode(), timeout=300)
        reader.join()
    assert first[0].decode().startswith("p0 · preference ──")
    assert (process.returncode, stderr) == (0, b"")


def in_terminal(*arguments, env=None):
    """What `music show` writes to a terminal 70 columns wide."""
    leader, follower = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")
    }
    done = subprocess.run(
        [*preloaded.command(), "show", *arguments],
        input=json.dumps(preference()) + "\n",
        stdout=follower,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, **(env or {})},
    )
    os.close(follower)
    assert (done.returncode, done.stderr) == (0, "")
    return os.read(leader, 1 << 16).decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_terminal_gets_its_width_and_color():
    shown = in_terminal()
    assert "\x1b[1;4;32mthree\x1b[0m" in shown
    assert {
        len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines() if "──" in line
    } == {70}


@pytest.mark.slow
@pytest.mark.parametrize("arguments, env", [(["--color", "never"], {}), ([], {"NO_COLOR": "1"})])
def test_a_terminal_gets_no_color_where_none_is_wanted(arguments, env):
    assert "\x1b" not in in_terminal(*arguments, env=env)


@pytest.mark.slow
def test_color_can_be_forced_into_a_pipe_and_width_chosen():
    done = run("--color", "always", "--width", "64", records=[preference()])
    assert "\x1b[1;4;32mthree\x1b[0m" in done.stdout
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines())) == 64


@pytest.mark.slow
def test_html_is_one_whole_file(tmp_path):
    target = tmp_path / "page.html"
    done = run("--html", target, records=[preference()])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert target.read_text().startswith("<!doctype html>") and target.read_text().endswith(
        "</html>\n"
    )
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.slow
def test_html_of_a_broken_file_does_not_appear(tmp_path):
    done = run("--html", tmp_path / "page.html", records=[preference(), {"id": "x"}])
    assert done.returncode == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "hh_harmless").is_dir(), reason="needs ../shared/data/hh_harmless")
def test_real_pairs_are_shown_whole_at_any_width(tmp_path):
    """Every word of 100 real pairs is there, and no line is too long."""
    import gzip

    pairs = tmp_path / "pairs.jsonl"
    with gzip.open(DATA / "hh_harmless" / "test.jsonl.gz", "rt") as lines, pairs.open("w") as out:
        for number, line in zip(range(100), lines, strict=False):
            sides = {}
            for side, text in json.loads(line).items():
                parts = re.split(r"\n\n(?:Human|Assistant): ?", text)[1:]
                sides[side] = messages(*(part.strip() or "-" for part in parts))
            out.write(json.dumps({"id": f"hh-{number}", **sides}) + "\n")
    from rich.cells import cell_len

    for record in jsonl.read([str(pairs)], records.parse_comparison):
        lines = {
            line.strip()
            for name in ("chosen", "rejected")
            for message in record[name]
            for line in visible(message["content"]).splitlines()
        }
        wide = terminal(record, width=4 * max(map(len, lines)) + 80)
        assert all(line in wide for line in lines)
        assert max(cell_len(line) for line in terminal(record, width=80).splitlines()) <= 80
