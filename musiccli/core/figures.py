"""How every figure looks, and how it becomes a file. Needs matplotlib (the extra `plot`)."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from musiccli.core.errors import InputError
from musiccli.core.text_safety import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito 2008: colors that people with any kind of color vision can tell apart.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
TEXT_COLOR, FAINT_COLOR = "#222222", "#8a8a8a"
RC_PARAMS = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT_COLOR,
    "axes.labelcolor": TEXT_COLOR,
    "xtick.color": TEXT_COLOR,
    "ytick.color": TEXT_COLOR,
    "text.color": TEXT_COLOR,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "svg.hashsalt": "music",  # without it an SVG's ids differ from run to run
}


def figure_format(path: str) -> str:
    """One of FORMATS, by the file's suffix. Raises InputError for another suffix."""
    suffix = path.rpartition(".")[2].lower()
    if suffix not in FORMATS:
        expected = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"`plot` {path}: expected a file that ends in {expected}")
    return suffix


def check_figure_path(path: str) -> None:
    """Raise InputError for an unknown suffix, a missing folder, or where matplotlib is missing."""
    figure_format(path)
    if not Path(path).parent.is_dir():
        raise InputError(f"`plot` {path}: there is no such folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError('`plot` needs matplotlib; pip install "musiccli[plot]"') from None


def plot_label(name: str, width: int | None = None) -> str:
    """A name as a label that matplotlib draws as it is.

    A dollar would start a formula, and a leading underscore keeps a label out of the legend.

    Args:
        name: any text.
        width: the most characters in a line; None for one line.
    """
    text = " " * name.startswith("_") + visible(name)
    if width and len(text) > width:
        text = "\n".join(_lines(text, width))
    return text.replace("$", r"\$")


def _lines(text: str, width: int) -> Iterator[str]:
    """The text in lines. They end behind a separator, if one is in the second half of the line."""
    while len(text) > width:
        ends = [text.rfind(separator, width // 2, width) + 1 for separator in " /-_."]
        end = max(ends) or width
        yield text[:end]
        text = text[end:]
    yield text


def figure_bytes(figure: "Figure", file_format: str) -> bytes:
    """The file of a figure in one of FORMATS. The same figure always gives the same bytes."""
    buffer = io.BytesIO()
    no_date: dict[str, dict[str, None]] = {
        "png": {},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    figure.savefig(buffer, format=file_format, dpi=160, metadata=no_date[file_format])
    return buffer.getvalue()
