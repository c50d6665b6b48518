"""When a server wants to be asked again."""

import math
import time
from datetime import UTC
from email.utils import parsedate_to_datetime


def parse_retry_after(header: str | None) -> float | None:
    """The header Retry-After in seconds: a number or an HTTP date (RFC 9110, 10.2.3), else None.

    A number that is too large for a float is infinite.
    """
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        pass
    else:
        return None if math.isnan(seconds) else max(0.0, seconds)
    try:
        date = parsedate_to_datetime(header)
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
