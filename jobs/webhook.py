"""Posting a summary to a webhook whose address is a secret."""

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pipelines.nightly_config import Webhook

_FIRST_PAUSE_S = 0.5
_TRANSIENT = (408, 425, 429)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Where a webhook sends us on to was not configured, so it gets nothing."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(webhook: Webhook, body: dict[str, Any]) -> str | None:
    """Post JSON, again where that may help, until the deadline.

    Returns:
        Why it could not be posted, without the address; None if it was.
    """
    try:
        url = _address(webhook)
    except (KeyError, OSError) as error:
        return f"its address could not be read ({type(error).__name__})"
    if not url.startswith(("https://", "http://")):
        return "its address is no http(s) URL"
    ends, pause = time.monotonic() + webhook.deadline_s, _FIRST_PAUSE_S
    data = json.dumps(body).encode()
    while True:
        trouble, again = _try(url, data, max(ends - time.monotonic(), 0.1))
        if trouble is None or not again or time.monotonic() + pause > ends:
            return trouble
        time.sleep(pause)
        pause *= 2


def _address(webhook: Webhook) -> str:
    if webhook.url_env is not None:
        return os.environ[webhook.url_env].strip()
    return Path(str(webhook.url_file)).read_text().strip()


def _try(url: str, data: bytes, timeout_s: float) -> tuple[str | None, bool]:
    """What went wrong, and whether another try may help."""
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=timeout_s):
            return None, False
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}", error.code >= 500 or error.code in _TRANSIENT
    # Messages of these may hold the address.
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"it could not be reached ({type(reason).__name__})", isinstance(error, OSError)
    except Exception as error:
        return f"it could not be reached ({type(error).__name__})", False
