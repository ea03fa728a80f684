"""The frame of every page: what its application is called, where its style sheets are, and who tells what it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deepseek_ops.web.markup import Child, Html, address, el


@dataclass(frozen=True, slots=True)
class Frame:
    """What the pages of one application have in common."""

    home: str
    """What the application's first page is called; every page leads back to it."""
    source: str
    """Who tells what the pages show, for their foot."""
    styles: tuple[str, ...] = ("data.css",)
    """Style sheets below the application's address."""

    def page(
        self, base: str, title: str, *content: Child, crumbs: Iterable[tuple[str, str]] = (), script: str = ""
    ) -> Html:
        """Return a whole page. ``base``: address of the application; ``crumbs``: the way back (name, address)
        after the first page; ``script``: a script below ``base``.
        """
        head = el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("title", f"{title} - deepseek-ops"),
            el("link", rel="icon", href="data:,"),
            [el("link", rel="stylesheet", href=address(base, style)) for style in self.styles],
            el("script", src=address(base, script), defer=True) if script else None,
        )
        trail = [el("li", el("a", name, href=link)) for name, link in ((self.home, address(base, "")), *crumbs)]
        body = el(
            "body",
            el("a", "Skip to content", href="#content", class_="skip"),
            el("header", el("nav", el("ol", trail), aria_label="Breadcrumb", class_="crumbs")),
            el("main", el("h1", title), content, id="content"),
            el("footer", self.source),
        )
        return Html("<!doctype html>\n" + el("html", head, body, lang="en"))


DATASETS = Frame("Datasets", "Read-only view of a deepseek-ops dataset store.")
LINEAGE = Frame("Lineage", "Told by the registry, the store, Git and the facts of deepseek-ops.")
TRAINING = Frame(
    "Training", "Told by the streams of the training in the store of deepseek-ops.", ("data.css", "training.css")
)
