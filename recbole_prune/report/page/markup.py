"""HTML and SVG in which nothing that comes from a file is read as markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from typing import Union

from recbole_prune.errors import printable


class Markup(str):
    """Text that is markup already; every other text is escaped where it becomes a part of one."""


Child = Union[str, int, None, Iterable["Child"]]


def element(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """An element of HTML or SVG.

    Args:
        name: of the tag.
        children: texts, which are escaped, :class:`Markup`, or iterables of them; None is left out.
        attributes: ``class_`` stands for ``class``, ``aria_label`` for ``aria-label``; None and False leave one out,
            True writes it without a value.
    """
    words = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _WITHOUT_CONTENT:
        return Markup(f"<{name}{words}>")
    if name in _SHAPES:
        return Markup(f"<{name}{words} />")
    end = "" if name in _ENDS_BY_ITSELF else f"</{name}>"
    return Markup(f"<{name}{words}>{joined(children)}{end}")


def joined(children: Iterable[Child]) -> Markup:
    """Children one after another, as :func:`element` takes them."""
    return Markup("".join(map(_content, children)))


_WITHOUT_CONTENT = ("meta", "br", "input")
_ENDS_BY_ITSELF = ("td", "th", "tr")  # where the next one begins or the table ends: so says HTML, and it is shorter
_SHAPES = ("path", "use", "circle", "rect")
_NEEDS_NO_QUOTES = re.compile(r"[\w#%.-]+", re.ASCII)


def _content(child: Child) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return escape(printable(child))
    if child is None:
        return ""
    return str(child) if isinstance(child, int) else joined(child)


def _attribute(key: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    text = str(value)
    if value is True:
        return f" {name}"
    return f" {name}={text}" if _NEEDS_NO_QUOTES.fullmatch(text) else f' {name}="{escape(printable(text))}"'


def json_text(value: object) -> Markup:
    """JSON that can stand inside a ``script`` element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
