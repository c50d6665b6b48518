"""What every page of HTML here shares: a head that lets nothing in but its own style, and text that is only text.

A page runs no script and asks the network for nothing.
"""

from html import escape

from musiccli.core.text_safety import visible

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #f6f6f4; --card: #ffffff; --ink: #1d1f21; --soft: #62676c; --line: #dcdcd8;
  --user: #eef2f7; --note: #8a5a00; --chosen: #1a7f45; --rejected: #b3372f; --a: #2459a9;
  --b: #8a4b9e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #16181a; --card: #1e2124; --ink: #e4e5e6; --soft: #9aa0a6;
  --line: #35393d; --user: #262b31; --note: #e2b35c; --chosen: #62c98b; --rejected: #ef8a82;
  --a: #82aef0; --b: #d09be0; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem); max-width: 90rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.2rem; margin: 0 0 1.25rem; }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.25rem;
  margin-bottom: 1.5rem; }}
h2 {{ font-size: 1rem; margin: 0; overflow-wrap: anywhere; }}
h2 span, .facts, .role, .rule, summary {{ color: var(--soft); font-weight: normal; }}
.facts {{ margin: .2rem 0 0; font-size: .85rem; overflow-wrap: anywhere; }}
.facts span + span::before {{ content: " · "; }}
.message {{ margin: .8rem 0 0; padding: .5rem .8rem; border-radius: .5rem; border: 1px solid var(--line);
  min-width: 0; }}
.message.user, .message.system {{ background: var(--user); border-color: transparent; }}
.role {{ font-size: .8rem; }}
.text {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; tab-size: 4; }}
.instead {{ margin: .2rem 0 .4rem; padding-left: .6rem; border-left: 3px solid var(--note); color: var(--note);
  font-size: .9rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
.rule {{ display: flex; align-items: center; gap: .75rem; margin: 1.2rem 0 0; font-size: .8rem; }}
.rule::before, .rule::after {{ content: ""; flex: 1; border-top: 1px dashed var(--line); }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; column-gap: 1rem; align-items: start; }}
.caption {{ margin: .8rem 0 0; font-weight: 600; overflow-wrap: anywhere; }}
.chosen {{ --tone: var(--chosen); }} .rejected {{ --tone: var(--rejected); }}
.a {{ --tone: var(--a); }} .b {{ --tone: var(--b); }}
.pair .caption, .pair .side {{ color: var(--tone); }}
.side {{ display: none; }}
mark {{ color: inherit; border-radius: .2rem; background: color-mix(in srgb, var(--tone) 22%, transparent); }}
details {{ margin-top: 1rem; font-size: .9rem; }}
details p {{ margin: .4rem 0 0 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
@media (max-width: 46rem) {{ .pair {{ grid-template-columns: 1fr; }} .pair .side {{ display: inline;
  font-weight: 600; }}
  .pair > .empty {{ display: none; }} article {{ padding: .8rem; }} }}
{style}</style>
</head>
<body>
<h1>{title}</h1>
"""


def begin(title: str, style: str = "") -> str:
    """The page up to its heading; `style` is added to what is shared."""
    return HEAD.format(title=safe(title), style=style)


def safe(text: str) -> str:
    """Any text, as HTML that shows it and does nothing else."""
    return escape(visible(text))
