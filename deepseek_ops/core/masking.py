"""Texts without the credentials of the URLs in them: what is printed, stored or posted may quote what people wrote."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"://[^/\s'\"<>]*@")
"""Up to the last ``@`` before the path: a password may hold one itself."""
_PARAMETER = re.compile(
    r"([?&;#][\w.%-]*(?:token|secret|passw|credential|signature|api[_-]?key|access[_-]?key|sig)[\w.%-]*=)[^&;\s'\"<>]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Return ``text`` with logins of URLs, and values of parameters that hold secrets, starred out."""
    return _PARAMETER.sub(r"\1***", _LOGIN.sub("://***@", text))
