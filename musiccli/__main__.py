"""`python -m musiccli` is `music`. Nothing is imported from the current folder."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # `-m` puts it there, so that a file named as a package of ours would run

from musiccli.cli.main import main

main()
