"""The house style of pictures: colours, settings, formats, and a figure as the bytes of a file."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from musiccli.core.errors import InputError
from musiccli.core.text_safety import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#56b4e9",
)  # told apart by any eye: Okabe & Ito 2008
INK, FAINT = "#222222", "#8a8a8a"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "svg.hashsalt": "music",
}


def check(path: str) -> str:
    """The picture's format, from the file's suffix. Raises InputError where it, its folder or matplotlib is missing."""
    form = path.rpartition(".")[2].lower()
    if form not in FORMATS:
        raise InputError(
            f"--plot {path}: expected a file that ends in {', '.join(f'.{name}' for name in FORMATS)}"
        )
    if not Path(path).parent.is_dir():
        raise InputError(f"--plot {path}: there is no such folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError('--plot needs matplotlib; pip install "musiccli[plot]"') from None
    return form


def printable(name: str) -> str:
    """A name as matplotlib draws it: a dollar would begin a formula, an underscore keep it out of the legend."""
    return " " * name.startswith("_") + visible(name).replace("$", r"\$")


def rendered(figure: "Figure", form: str) -> bytes:
    """The file's content, the same for the same figure."""
    buffer = io.BytesIO()
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(buffer, format=form, dpi=160, metadata=undated[form])
    return buffer.getvalue()
