"""Write .ci/lock.txt from pip's report on the packages of .ci/constraints.txt.

pip install --dry-run --ignore-installed --no-deps --report REPORT -r .ci/constraints.txt setuptools
python .ci/lock.py REPORT > .ci/lock.txt
"""

import json
import sys
from pathlib import Path

HEADER = """\
# The files that the tests ran with (Python 3.11, Linux, x86-64); written by .ci/lock.py.
# torch is left out: its file, and what it needs beside it, differ with the machine's GPU."""


def main() -> None:
    """Print a line for each package."""
    report = json.loads(Path(sys.argv[1]).read_bytes())
    print(HEADER)
    for package in sorted(report["install"], key=lambda package: package["metadata"]["name"]):
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        if name != "torch":
            sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
            print(f"{name}=={version} --hash=sha256:{sha256}")


main()
