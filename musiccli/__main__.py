"""`python -m musiccli` is `music`: this is how launchers start it."""

from musiccli.cli.main import main

main()
