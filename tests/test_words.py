"""The code keeps to the field's words: no name that says nothing, or that only its authors understand."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "musiccli"
UNCLEAR = {  # names of things that do not say what the thing is
    *("found", "one", "own", "said", "by", "other", "others", "whom", "given", "known", "here"),
    *("there", "made", "asked", "what", "aside", "hands", "families", "chance", "held", "company"),
    *(
        "unseen",
        "unread",
        "sufficient",
        "one_voice",
        "asks",
        "open_door",
        "own_products",
        "in_order",
    ),
}
RENAMED = {  # names that a standard term has replaced
    *(
        "Team",
        "Standing",
        "Refusal",
        "Place",
        "Narrowed",
        "Rehearsal",
        "Embedded",
        "Pace",
        "Settings",
    ),
    *("DEAR", "KEPT", "HOW", "WARMER", "BRIEF", "Seen", "scored", "colour", "centre", "optimiser"),
}


def names(tree: ast.AST) -> dict[str, int]:
    """Every name that a module gives to something, with the line where it does."""
    lines: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines.setdefault(node.id, node.lineno)
        elif isinstance(node, ast.arg):
            lines.setdefault(node.arg, node.lineno)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            lines.setdefault(node.name, node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            lines.setdefault(node.attr, node.lineno)
        elif isinstance(node, ast.alias) and node.asname:
            lines.setdefault(node.asname, node.lineno)
    return lines


def test_the_reader_of_names_sees_what_it_should():
    code = "import a as found\nclass Team:\n    def said(self, own):\n        self.other = by = 1\n"
    expected = {"found", "Team", "said", "self", "own", "other", "by"}
    assert names(ast.parse(code)).keys() == expected


def test_names_say_what_things_are():
    unclear = {
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in ROOT.rglob("*.py")
        for name, line in names(ast.parse(path.read_text("utf-8"))).items()
        if name.strip("_") in UNCLEAR | RENAMED
    }
    assert unclear == set()
