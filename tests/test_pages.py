"""Pages of HTML: every value that a template prints is only text, and every template is shipped."""

from pathlib import Path

import jinja2
import pytest
from markupsafe import Markup

from musiccli.core import pages
from musiccli.core.records import Record
from musiccli.show.html import html_page

PACKAGE = Path(pages.__file__).parents[1]
TEMPLATES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.glob("**/templates/*")
    if path.suffix in (".html", ".css")
)


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Makes a template of a text, in the environment that all pages use."""
    environment = pages._environment().overlay(loader=jinja2.FileSystemLoader(tmp_path))
    monkeypatch.setattr(pages, "_environment", lambda: environment)

    def make(text):
        (tmp_path / "page.html").write_text(text)
        return "page.html"

    return make


def test_values_are_made_visible_and_escaped(template):
    name = template('<p title="{{ text }}">{{ text }}{{ number }}</p>')
    text = "<b>\x1b\"'\u202e&"
    shown = "&lt;b&gt;␛&#34;&#39;⟨U+202E⟩&amp;"
    assert pages.render(name, text=text, number=7) == f'<p title="{shown}">{shown}7</p>'
    assert "".join(pages.render_pieces(name, text=text, number=7)) == (
        f'<p title="{shown}">{shown}7</p>'
    )


def test_a_rendered_template_is_put_into_another_as_it_is(template):
    part = pages.render(template("<b>{{ text }}</b>"), text="&")
    assert isinstance(part, Markup)
    assert pages._environment().from_string("<p>{{ part }}</p>").render(part=part) == (
        "<p><b>&amp;</b></p>"
    )


def test_a_missing_variable_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError, match="'text' is undefined"):
        pages.render(template("{{ text }}"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_compiles(name):
    pages._environment().get_template(name)


def test_no_template_turns_escaping_off():
    texts = [(PACKAGE / name).read_text() for name in TEMPLATES]
    assert len(texts) >= 5
    assert not any("|safe" in text.replace(" ", "") or "autoescape" in text for text in texts)


def test_a_page_reads_a_record_when_it_is_written():
    records_read = []

    def read():
        for number in range(3):
            records_read.append(number)
            messages = [{"role": "user", "content": f"question {number}"}]
            yield Record({"id": number, "messages": messages})

    for piece in html_page(read(), "title"):
        if "question" in piece:
            assert f"question {records_read[-1]}" in piece
    assert records_read == [0, 1, 2]
