"""The command line: one file a command. Everything heavy is imported when a command runs."""

import gc

gc.disable()  # importing the commands makes no garbage; looking for it took a tenth of the start
