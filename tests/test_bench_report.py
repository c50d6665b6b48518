"""What `music bench` writes beside its records: pages, Markdown and figures."""

import hashlib
import os
import re
import sys
from html.parser import HTMLParser
from unicodedata import category

import pytest
from build import lines, scored_pair, talk, votes, write
from console import music, start

from musiccli.bench.report import html, latex, markdown
from musiccli.bench.report.tables import Table
from musiccli.bench.rewardbench import PAIRS


def candidate(number, sample, **metadata):
    return {
        "id": f"c{number}",
        "sample": sample,
        "messages": talk(f"prompt {number}", f"reply {sample}"),
        "metadata": {"correct": sample < 3, **metadata},
        "scores": {"rm": sample * number % 7},
    }


def contest(number, winner):
    return {
        "id": f"p{number}",
        "best_of": 2,
        "winner": winner,
        "models": {"a": "new", "b": "old"},
        "a": talk("prompt", "this"),
        "b": talk("prompt", "that"),
    }


BENCHES = {
    "rewardbench": [
        scored_pair(f"{subset}{number}", int(number), 1, metadata={"subset": subset})
        for subset in PAIRS
        for number in "0123"
    ],
    "rewardbench2": [
        candidate(number, sample, subset="Math") for number in range(5) for sample in range(6)
    ],
    "rmbench": [
        candidate(number, sample, domain=domain)
        for number, domain in enumerate(("chat", "code", "math", "safety-refuse"))
        for sample in range(6)
    ],
    "agreement": [scored_pair(number, number % 3, 1) for number in range(9)],
    "sensitivity": [
        scored_pair(
            f"{kind}{number}", number % 3, 1, corruption={"kind": kind, "distance": number // 5}
        )
        for kind in ("reply", "swap", "drop_user")
        for number in range(20)
    ],
    "winrate": [contest(number, "ab"[number % 2]) for number in range(9)],
    "judges": [
        contest(number, "a") | {"votes": votes("one", *"ab") + votes("two", "a", "ab"[number % 2])}
        for number in range(9)
    ],
    "audit": [
        {
            "id": f"p{number}",
            "chosen": talk(f"prompt {number}", "yes", "why?", "it is"),
            "rejected": talk(f"prompt {number}", "to the modified request: no", "what?", "so"),
            "contrast": [
                {"message": 1, "instruction": "say no"},
                {"message": 3, "instruction": "say it"},
            ],
        }
        for number in range(9)
    ],
}


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(name, *options, records=None):
    done = music(
        "bench", name, *options, given=lines(*(BENCHES[name] if records is None else records))
    )
    assert done.status == 0, done.err
    return done


def read(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_writes_a_page_that_stands_alone(folder, name):
    pytest.importorskip("matplotlib")
    plain = bench(name)
    assert bench(name, "--html", "page.html").out == plain.out
    text = read(folder / "page.html")
    found = Elements(text).found
    tags = {tag for tag, _ in found}
    assert {"svg", "table", "details", "pre", "h1"} <= tags
    assert tags & {"script", "link", "img", "iframe", "object", "form", "base"} == set()
    assert (
        "meta",
        {
            "http-equiv": "Content-Security-Policy",
            "content": "default-src 'none'; style-src 'unsafe-inline'",
        },
    ) in found
    targets = [
        value
        for _, attributes in found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "data")
    ]
    assert all(target.startswith("#") for target in targets)
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert text.count("<svg") == text.count("</svg>") == 1 and text.endswith("</html>\n")


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_writes_its_tables_as_markdown(folder, name):
    bench(name, "--markdown", "tables.md")
    text = read(folder / "tables.md")
    head, separator, *_ = [line for line in text.splitlines() if line.startswith("|")]
    assert head.count("|") == separator.count("|") > 3
    assert text.startswith("**") and "95% interval" in text.splitlines()[0]


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_writes_its_tables_as_latex(folder, name):
    bench(name, "--latex", "tables.tex")
    text = read(folder / "tables.tex")
    body = text.partition("\\toprule\n")[2].partition("\\bottomrule")[0]
    cells = [line.count(" & ") for line in body.splitlines() if line.endswith("\\\\")]
    assert len(set(cells)) == 1 and cells[0] > 1
    assert "95\\% interval" in text.partition("\\begin{tabular}")[0]
    assert not re.search(r"(?<!\\)[%#_$]", text.partition("\n% ")[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewardbench2", "rmbench", "sensitivity", "judges", "audit"])
@pytest.mark.parametrize("form, start", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_newer_benches_draw_pictures_too(folder, name, form, start):
    pytest.importorskip("matplotlib")
    bench(name, "--plot", f"figure.{form}")
    assert (folder / f"figure.{form}").read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a$b$c", "_hidden", r"$\frac{$", "x" * 300, "\n\n"])
def test_a_models_name_is_a_name_in_pictures_too(folder, name):
    pytest.importorskip("matplotlib")
    records = [one | {"scores": {name: one["scores"]["rm"]}} for one in BENCHES["agreement"]]
    bench("agreement", "--html", "page.html", records=records)
    picture = read(folder / "page.html").partition("<svg")[2].partition("</svg>")[0]
    text = "".join(re.findall("<text[^>]*>([^<]*)</text>", picture))
    assert name.strip() in text


LONG_NAMES = [
    f"some-organization-{number}/Reward-Model-with-a-Very-Long-Name-{number * 7}B-v0.{number}"
    for number in range(10)
]


def with_long_names(records: list[dict]) -> list[dict]:
    """The records as ten models or judges of long names scored or judged them."""
    renamed = []
    for number, record in enumerate(records):
        record = dict(record)
        if "scores" in record:
            record["scores"] = dict.fromkeys(LONG_NAMES, record["scores"]["rm"])
        if "votes" in record:
            record["votes"] = [vote for name in LONG_NAMES for vote in votes(name, *"ab")]
        if "models" in record:
            record["models"] = {"a": LONG_NAMES[number % 10], "b": LONG_NAMES[0] + "-base"}
        renamed.append(record)
    return renamed


@pytest.mark.parametrize("name", BENCHES)
def test_no_text_of_a_figure_with_ten_models_of_long_names_is_cut_off(folder, name, monkeypatch):
    pytest.importorskip("matplotlib")
    from musiccli.bench.report import plots

    def check(figure, file_format):
        figure.draw_without_rendering()
        drawn, width, height = figure.get_tightbbox(), *figure.get_size_inches()
        assert drawn.x0 >= 0 and drawn.x1 <= width and drawn.y0 >= 0 and drawn.y1 <= height
        return b"<svg></svg>"

    monkeypatch.setattr(plots, "figure_bytes", check)
    records = with_long_names(BENCHES[name])
    bench(name, "--plot", "figure.svg", records=records)


EVIL = "<script>alert(1)</script>\"'&\x1b[31m\u202e</table></svg><!--"


def test_nothing_in_a_record_becomes_markup(folder):
    records = [scored_pair(number, 0, 1, metadata={"category": EVIL}) for number in range(3)]
    for one in records:
        one["id"] += EVIL
        one["scores"] = {EVIL: one["scores"]["rm"]}
        one["chosen"][1]["content"] = EVIL
    done = bench(
        "agreement",
        "--by",
        "metadata.category",
        "--html",
        "page.html",
        "--markdown",
        "tables.md",
        records=records,
    )
    assert (
        not any(category(char) in ("Cc", "Cf") for char in done.err if char != "\n")
        and "␛[31m" in done.err
    )
    text = read(folder / "page.html")
    assert not any(category(char) in ("Cc", "Cf") for char in text if char != "\n")
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
    parsed = Elements(text)
    assert parsed.text.count("<script>alert(1)</script>") > 5 and "⟨U+202E⟩" in parsed.text
    assert [tag for tag, _ in parsed.found].count("table") == 2  # accuracies, calibration
    table = read(folder / "tables.md")
    assert (
        "\x1b" not in table
        and "\\<script\\>" in table
        and "<script" not in table.replace("\\<script", "")
    )


@pytest.mark.parametrize("name", ["rm[/v2]", "out[bold]x", "[red]", ":smile:", "rm\nmusic: done"])
@pytest.mark.parametrize("kind", ["agreement", "winrate"])
def test_a_models_name_is_a_name_in_the_terminal_too(kind, name):
    """In a column's head and in a title, where rich looks for styles and emoji of its own."""
    records = [
        one | {"scores": {name: {"chosen": 1, "rejected": 0}}, "models": {"a": name, "b": "old"}}
        for one in BENCHES[kind]
    ]
    done = bench(kind, records=records)
    assert name.replace("\n", " ") in done.err
    assert all(
        line.startswith(f"music bench {kind}: ") for line in done.lines if line.startswith("music")
    )


def test_the_worst_records_are_folded_bounded_and_the_first_is_open(folder):
    records = [scored_pair(number, 0, number) for number in range(30)]
    bench("agreement", "--html", "page.html", records=records)
    text = read(folder / "page.html")
    summaries = re.findall(
        r'<details class="worst"( open)?><summary>rm: <b>(.*?)</b> · (.*?)</summary>', text
    )
    assert summaries == [
        (" open" if number == 29 else "", f"wrong by {number}", f"p{number}")
        for number in range(29, 21, -1)
    ]
    assert text.count("<article>") == 8 and "prompt 29" in text and "prompt 3<" not in text


def test_a_model_that_is_never_wrong_has_no_such_section(folder):
    bench("agreement", "--html", "page.html", records=[scored_pair(0, 1, 0)])
    assert "Most wrong" not in read(folder / "page.html")


def test_the_page_says_how_to_get_the_same_figures(folder):
    path = write(folder / "my pairs.jsonl", *BENCHES["agreement"])
    done = music("bench", "agreement", path.name, "--html", "page.html", "--confidence", "0.9")
    assert done.status == 0
    text = Elements(read(folder / "page.html")).text
    assert "music bench agreement 'my pairs.jsonl' --html page.html --confidence 0.9" in text
    assert f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in text
    assert "9 records" in text and "90% interval" in text
    assert f"Python{'.'.join(map(str, sys.version_info[:3]))}" in text.replace("\n", "")


@pytest.mark.slow
def test_a_named_pipe_is_read_once_and_has_no_hash(folder):
    """As a shell's <(...) is one. Opened a second time, it would wait for a writer for ever."""
    os.mkfifo("pairs")
    running = start("bench", "agreement", "pairs", "--html", "page.html")
    write("pairs", *BENCHES["agreement"])
    try:
        _, said = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 0, said
    text = Elements(read(folder / "page.html")).text
    assert "pairsa pipe, which left nothing to name" in text and "sha256" not in text


@pytest.mark.slow
def test_the_same_records_give_the_same_page(folder):
    path = write(folder / "pairs.jsonl", *BENCHES["sensitivity"])
    texts = []
    for _ in range(2):
        assert music("bench", "sensitivity", path.name, "--html", "page.html").status == 0
        texts.append(read(folder / "page.html"))
    assert texts[0] == texts[1]


def test_without_matplotlib_a_page_has_tables_and_says_what_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = bench("agreement", "--html", "page.html")
    assert "--plot" not in done.err
    assert (
        "music bench agreement: page.html: has no picture, matplotlib is missing; "
        'pip install "musiccli[plot]"' in done.lines
    )
    assert "<svg" not in read(folder / "page.html") and "<table>" in read(folder / "page.html")


@pytest.mark.parametrize(
    "options, said",
    [
        (("--html", "-"), "--html -: this run's own input or output; name another file"),
        (("--markdown", "-"), "--markdown -: this run's own input or output; name another file"),
        (
            ("--html", "x", "--markdown", "./x"),
            "--markdown ./x: this run's own input or output; name another file",
        ),
        (("-o", "x", "--html", "x"), "--html x: this run's own input or output; name another file"),
        (
            ("--html", "in.jsonl"),
            "--html in.jsonl: this run's own input or output; name another file",
        ),
        (("--html", "none/x"), "--html none/x: there is no such folder"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_read(folder, options, said):
    write("in.jsonl", b"?")
    done = music("bench", "agreement", "in.jsonl", *options)
    assert (done.status, done.lines) == (2, [f"music bench agreement: error: {said}"])


def test_nothing_appears_where_the_records_are_bad(folder):
    done = music("bench", "agreement", "--html", "x.html", "--markdown", "x.md", given=b"?\n")
    assert done.status == 2 and list(folder.iterdir()) == []


def test_markdown_is_exact():
    table = Table(
        "Title, % [95%]",
        ["", "pairs", "a|b"],
        [["Chat", "1", "2 [1, 3]"], ["  under_it", "1,000", ""]],
    )
    assert "".join(markdown.document([table], ["a note with *stars*"])) == (
        "**Title, % [95%]**\n\n"
        "|  | pairs | a\\|b |\n| :-- | --: | --: |\n| Chat | 1 | 2 [1, 3] |\n"
        "| &emsp;under\\_it | 1,000 |  |\n\n"
        "- a note with \\*stars\\*\n"
    )


def test_latex_is_exact():
    table = Table(
        "Title, % [95%]",
        ["", "pairs", r"a_b\c{&}"],
        [["Chat", "1", "2 [1, 3]"], ["  under^it", "1,000", ""], ["*", "~\n<", "[x]"]],
    )
    assert "".join(latex.document([table], ["a note\nof 50%"])) == (
        "\\begin{table}\n\\centering\n\\caption{Title, \\% [95\\%]}\n"
        "\\begin{tabular}{lrr}\n\\toprule\n"
        " & pairs & a\\_b\\textbackslash{}c\\{\\&\\} \\\\\n\\midrule\n"
        "Chat & 1 & 2 [1, 3] \\\\\n"
        "\\quad under\\textasciicircum{}it & 1,000 &  \\\\\n"
        "{*} & \\textasciitilde{} \\textless{} & {[x]} \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n\n"
        "% a note of 50%\n"
    )


def test_a_model_that_scored_fewer_pairs_says_so_in_its_cell(folder):
    """Two models' accuracies stand in one line, so it must say that they are of other pairs."""
    records = [scored_pair(number, number % 2, 0.5) for number in range(40)]
    for one in records[1:8:2]:
        one["scores"]["easy"] = one["scores"]["rm"]
    done = bench("agreement", "--html", "page.html", "--markdown", "tables.md", records=records)
    assert [
        "all",
        "40",
        "50.0",
        "[35.2,",
        "64.8]",
        "100.0",
        "[51.0,",
        "100.0]",
        "of",
        "4",
        "longest",
        "100.0",
    ] in [line.split() for line in done.lines]
    assert "<td>100.0 <span>[51.0, 100.0] of 4</span></td>" in read(folder / "page.html")
    assert "| all | 40 | 50.0 [35.2, 64.8] | 100.0 [51.0, 100.0] of 4 | longest 100.0 |" in read(
        folder / "tables.md"
    )


def test_intervals_step_back_and_names_keep_their_depth():
    rows = [["  easy", "61.5 [52.0, 70.2]", "longest 7"], ["Average", "1"], ["all", "1"]]
    pieces = html.html_page(
        "title", "", None, [Table("", [], rows)], [], [], html.Provenance("", [], [])
    )
    under, average, other = re.findall("<tr[^>]*><th scope=.row.*", "".join(pieces))
    assert under == (
        '<tr class="under"><th scope="row">easy</th>'
        "<td>61.5 <span>[52.0, 70.2]</span></td><td>longest 7</td></tr>"
    )
    assert average.startswith('<tr class="last">') and other.startswith("<tr><th")


HOSTILE_NAMES = [
    "[click](https://evil.example)",
    "![](https://evil.example/pixel.png)",
    "https://evil.example",
    "www.evil.example",
    "a@evil.example @everybody",
    "<img src=x onerror=alert(1)>",
    "~~gone~~ &lt; $x$ #1 GH-1",
    "[x] task",
    "a|b\\|c\\",
    "``` `` `",
    "[1](x) [2]: y [3, 4]",
    "line\n\n# heading\u2028| a |",
    "*_`\\",
]


def without_code(text: str) -> str:
    """Markdown without its blocks and spans of code."""
    text = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", text)
    return re.sub(r"(?<![\\`])(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_from_data_make_no_markup(name):
    table = Table(name, ["", name], [[name, "1"]])
    title, _, head, line, row, _, note = "".join(markdown.document([table], [name])).splitlines()
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", text)) for text in (head, line, row)]
    assert bars == [3, 3, 3]
    for text in (title.removeprefix("**").removesuffix("**"), note.removeprefix("- ")):
        plain = re.sub(r"\\[\\`*_<>|\[\]~&$#]", "", without_code(text))
        assert not re.search(r"[`*_<>|~&$#]|://|@|www\.|GH-|^\[|\](?!$)", plain), text


def test_a_card_escapes_names_from_data():
    from musiccli.reward_model.card import render_card

    for name in HOSTILE_NAMES:
        plain, hostile = (
            render_card(
                {
                    "base": text,
                    "files": [{"name": text, "pairs": 1, "sha256": None}],
                    "counts": {text: 1},
                    "settings": {"model": text},
                    "command": f"music train {text} '```\n# heading'",
                }
            )
            for text in ("x", name)
        )
        for mark in (r"[^\\]\]\(", r"!\[", r"(?<!\\)<img", r"\n#", "://", "~~g", "@ev"):
            counts = [len(re.findall(mark, without_code(text))) for text in (plain, hostile)]
            assert counts[0] == counts[1], name
