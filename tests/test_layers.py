"""Imports run one way: core, then what a CPU and a GPU need and the prompts, then models, then the stages, then the commands.

The folders of musiccli are its rooms. A room imports only rooms below it, and a stage imports no other stage.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "musiccli"
LEVELS = [  # of rooms, from the ground up
    {"core"},
    {"cpu", "prompts", "manual"},
    {"gpu"},
    {"llm", "reward_model"},
    {"sample", "simulate", "pair", "train", "score", "serve", "judge", "bench", "show"},
    {"cli"},
    {"__main__"},
]
COMMANDS = {"cli", "__main__"}
LIGHT = ("errors", "records", "jsonl", "progress", "text_safety")  # of core
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "litellm",
    "numpy",
    "scipy",
    "peft",
    "accelerate",
    "pandas",
    "matplotlib",
    "aiohttp",
    "safetensors",
    "gguf",
    "openvino",
    "openvino_genai",
    "pyarrow",
}
SLOW = {
    "backports",
    "compression",
    "gzip",
    "hashlib",
    "rich",
    "sqlite3",
    "asyncio",
    "logging",
}  # milliseconds each


def modules() -> dict[str, ast.Module]:
    """Every module under musiccli by its dotted name, without the package's own."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted(ROOT.rglob("*.py"))
    }
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text())
        for name, path in paths.items()
        if name != "__init__"
    }


MODULES = modules()


def room(name: str) -> str:
    """The room a module belongs to: its first name."""
    return name.split(".")[0]


def level(name: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room(name) in rooms)


def imports(node: ast.AST, at_start: bool = False) -> set[str]:
    """The dotted names that code imports; `at_start`: as soon as it is imported itself, so not inside functions."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute"
            found |= {f"{child.module}.{alias.name}" for alias in child.names}
        elif at_start and (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or for_types(child)
        ):
            continue
        else:
            found |= imports(child, at_start)
    return found


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def own(names: set[str]) -> set[str]:
    """Which modules of ours are among imported names: "musiccli.core.jsonl.read" is jsonl."""
    found = set()
    for name in names:
        head, *rest = name.split(".")
        while head == "musiccli" and rest and ".".join(rest) not in MODULES:
            rest = rest[:-1]
        if head == "musiccli" and rest:
            found.add(".".join(rest))
    return found


def test_the_reader_of_imports_sees_what_it_should():
    code = ast.parse(
        "import a.b\nfrom musiccli.core import jsonl\nfrom musiccli import __version__\n"
        "if TYPE_CHECKING:\n    import t\n"
        "class C:\n    import c\ndef f():\n    from musiccli.cli.main import app\n"
    )
    assert imports(code, at_start=True) == {
        "a.b",
        "musiccli.core.jsonl",
        "musiccli.__version__",
        "c",
    }
    assert imports(code) == imports(code, at_start=True) | {"t", "musiccli.cli.main.app"}
    assert own(imports(code)) == {"core.jsonl", "cli.main"}


def test_imports_go_down_only():
    wrong = {
        (name, other)
        for name, module in MODULES.items()
        for other in own(imports(module))
        if room(other) != room(name) and level(other) >= level(name)
    }
    assert wrong == set(), "the second of each pair does not stand below the first"


def test_no_two_modules_import_each_other():
    """Nor do more in a circle, and an import inside a function counts."""
    imported = {name: own(imports(module)) - {name} for name, module in MODULES.items()}
    TopologicalSorter(imported).prepare()  # raises CycleError, which names them


def test_commands_import_stages_inside_their_bodies():
    """Only a room's defaults, in its light module config, may come at the start."""
    wrong = {
        (name, other)
        for name, module in MODULES.items()
        if room(name) in COMMANDS
        for other in own(imports(module, at_start=True))
        if (1 < level(other) < level("cli") or room(other) == "prompts")
        and not other.endswith(".config")
    }
    assert wrong == set()


def is_light(name: str) -> bool:
    """Whether a module is read before a command is known to need more."""
    return (
        room(name) in ("prompts", *COMMANDS)
        or name.removeprefix("core.").split(".")[0] in LIGHT
        or name.endswith(".config")
    )


def test_what_is_imported_at_the_start_is_light():
    wrong = {
        (name, room(other))
        for name in filter(is_light, MODULES)
        for other in imports(MODULES[name], at_start=True)
        if room(other) in HEAVY | SLOW
    }
    assert wrong == set()


def uses_of_streams(module: ast.Module) -> Iterator[ast.AST]:
    """Where code reads or writes a standard stream, and does not only ask whether it is a terminal."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            stream = ast.unparse(node.value)
            if stream in ("sys.stdin", "sys.stdout") and node.attr not in ("isatty", "fileno"):
                yield node
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") in ("print", "input")
            and not any(key.arg == "file" for key in node.keywords)
        ):
            yield node
        if isinstance(node, ast.For) and ast.unparse(node.iter).startswith("sys.std"):
            yield node


def test_only_jsonl_reads_and_writes_the_standard_streams():
    """People are spoken to through progress, and read what cli.app prints for them."""
    wrong = {
        (name, ast.unparse(node), node.lineno)
        for name, module in MODULES.items()
        if not name.startswith("core.jsonl") and name != "cli.main"
        for node in uses_of_streams(module)
        if not (name == "cli.app" and isinstance(node, ast.Call))
    }
    assert wrong == set()


def test_nothing_below_the_command_line_exits():
    wrong = {
        (name, node.lineno)
        for name, module in MODULES.items()
        if room(name) not in COMMANDS
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "quit")
    }
    assert wrong == set()


def test_a_default_stands_in_a_config_alone():
    """An option without a config has None, True or False; every other default has one place."""
    wrong = {
        (name, node.name, part.value)
        for name, module in MODULES.items()
        if room(name) == "cli" and name != "cli.app"
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        for default in filter(None, (*node.args.defaults, *node.args.kw_defaults))
        for part in ast.walk(default)
        if isinstance(part, ast.Constant) and part.value not in (None, True, False)
    }
    assert wrong == set()


@cache
def options() -> set[str]:
    """Every option of every command, as "--batch"."""
    from test_contract import commands

    return {
        name
        for command in commands().values()
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }


def names_options(text: str) -> bool:
    """Whether a text names an option of ours.

    A pipeline that help shows, and the name of an option alone, are what they should be.
    """
    if text in options() or (text.startswith("music ") and " | " in text):
        return False
    return not options().isdisjoint(text.replace("=", " ").replace(":", " ").split())


def test_only_the_command_line_names_its_options():
    """The library names its parameters in backticks, and cli/ says what to type.

    A model card shows whole command lines, which people copy.
    """
    wrong = {
        (name, node.lineno, node.value)
        for name, module in MODULES.items()
        if room(name) not in COMMANDS and name != "reward_model.card"
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if names_options(node.value)
    }
    assert wrong == set()
