"""What SIGTERM does to a command."""

import signal


def terminate(*_: object) -> None:
    """End a run as Ctrl-C does, also in a background job of a script, which ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
