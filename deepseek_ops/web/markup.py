"""HTML that cannot be broken by what it shows: text is escaped unless it was made here.

Pages work without scripts and load nothing from elsewhere, so the policy sent with them forbids both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from urllib.parse import quote, urlencode

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'self'"
)
"""Content-Security-Policy of pages: own style sheet and forms, no script at all."""
FILE_POLICY = "default-src 'none'; sandbox"
"""Content-Security-Policy of file downloads: a stored HTML file can do nothing here."""
_VOID = frozenset({"meta", "link", "input", "br", "hr"})


class Html(str):
    """Markup that is safe to send as it is."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]
Attribute = str | int | float | bool | None


def el(tag: str, /, *children: Child, **attributes: Attribute) -> Html:
    """Return an element. Children that are no ``Html`` are escaped; ``class_`` is ``class``, ``_`` in names is ``-``.

    An attribute that is True stands alone; None and False leave it out.
    """
    given = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{given}>")
    return Html(f"<{tag}{given}>{join(children)}</{tag}>")


def join(children: Child) -> Html:
    """Return children one after the other, escaped where they are plain text."""
    if isinstance(children, Html):
        return children
    if children is None:
        return Html("")
    if isinstance(children, str | int):
        return Html(escape(shown(str(children))))
    return Html("".join(join(child) for child in children))


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(shown(str(value)), quote=True)}"'


def shown(text: str) -> str:
    """Return text without characters that a browser drops or that turn the direction of what follows."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in "\n\t" or _visible(char) else f"\\u{ord(char):04x}" for char in text)


def _visible(char: str) -> bool:
    point = ord(char)
    hidden = point < 0x20 or 0x7F <= point < 0xA0 or 0xD800 <= point < 0xE000
    return not (hidden or char in "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def address(base: str, *segments: str, **query: str | int | None) -> str:
    """Return a path below ``base`` with each segment quoted (``/`` stays), and a query of what is not empty."""
    path = "/".join(quote(segment, safe="/") for segment in segments)
    wanted: Mapping[str, str | int] = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{base}/{path}" + (f"?{urlencode(wanted)}" if wanted else "")


def table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[Child]], *, numbers: Iterable[int] = ()) -> Html:
    """Return a table; columns in ``numbers`` are set right."""
    right = set(numbers)

    def cell(tag: str, at: int, content: Child) -> Html:
        return el(tag, content, class_="number" if at in right else None, scope="col" if tag == "th" else None)

    return el(
        "div",
        el(
            "table",
            el("caption", caption),
            el("thead", el("tr", [cell("th", at, name) for at, name in enumerate(heads)])),
            el("tbody", [el("tr", [cell("td", at, content) for at, content in enumerate(row)]) for row in rows]),
        ),
        class_="scroll",
        role="region",
        tabindex=0,
        aria_label=caption,
    )
