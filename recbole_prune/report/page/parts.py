"""What sections of the page are built of: tables, figures, notes."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_prune.report.page.markup import Child, Markup, element, joined
from recbole_prune.report.page.scales import NOT_MEASURED


def section(key: str, title: str, *content: Child) -> Markup:
    """A part of the page with its heading."""
    return element("section", element("h2", title, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title")


def table(caption: str, header: Sequence[Child], rows: Sequence[Sequence[Child]], **attributes: str | None) -> Markup:
    """A table that scrolls by itself where it is wider than the page; the first cell of a row is its heading.

    Args:
        caption: what it shows.
        header: names of the columns.
        rows: of cells; a cell that is no markup is escaped, and a :func:`cell` keeps its own attributes.
        attributes: of the table.
    """
    head = element("tr", [element("th", name, scope="col") for name in header])
    body = [
        element("tr", element("th", first, scope="row"), [_as_cell(each) for each in rest]) for first, *rest in rows
    ]
    inside = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", head),
        element("tbody", body),
        **attributes,
    )
    return element("div", inside, class_="scroll", role="region", tabindex="0", aria_label=caption)


def measured_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table without the columns in which nothing was measured; a line below names those."""
    kept = [place for place in range(len(header)) if any(row[place] not in (NOT_MEASURED, "-") for row in rows)]
    missing = [name for place, name in enumerate(header) if place not in kept]
    shown = table(caption, [header[place] for place in kept], [[row[place] for place in kept] for row in rows])
    return joined([shown, not_measured(missing)])


def not_measured(columns: Sequence[str]) -> Markup | None:
    """What columns a table would have had, None where it has all."""
    return paragraph(f"Not measured in any run: {', '.join(columns)}.", class_="note") if columns else None


def cell(content: Child, class_: str | None = None) -> Markup:
    """A cell with a class."""
    return element("td", content, class_=class_)


def _as_cell(content: Child) -> Markup:
    if isinstance(content, Markup) and content.startswith("<td"):
        return content
    return element("td", content, class_="none" if content == NOT_MEASURED else None)


def heat(share: float | None) -> Markup:
    """A cell that says a percentage and shows it by its colour."""
    if share is None:
        return cell("-")
    bounded = min(max(share, 0.0), 1.0)
    text = f"{100 * bounded:.0f}" if bounded in (0.0, 1.0) or bounded >= 0.0995 else f"{100 * bounded:.1f}"
    return cell(text, f"h{round(9 * bounded)}")


def figure(chart: Markup, caption: Child, **attributes: str | None) -> Markup:
    """A chart and what is said under it."""
    return element("figure", chart, element("figcaption", caption), **attributes)


def paragraph(*content: Child, class_: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", content, class_=class_)


def details(summary: str, *content: Child, open_: bool = False) -> Markup:
    """What is shown when it is asked for."""
    return element("details", element("summary", summary), content, open=open_)


def preformatted(text: str, **attributes: str) -> Markup:
    """Lines that keep their form."""
    lines = [joined([line, Markup("\n")]) for line in text.splitlines()]
    return element("pre", element("code", lines, **attributes), tabindex="0")
