"""A user and password in a URL: sent as a header, so that no message or log repeats them with the address."""

import base64
from urllib.parse import unquote, urlsplit


def without_login(url: str) -> tuple[str, str | None]:
    """A URL without the user and password it may carry, and the header they stand for."""
    parts = urlsplit(url)
    if not parts.username:
        return url, None
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return clean, f"Basic {base64.b64encode(login.encode()).decode()}"
