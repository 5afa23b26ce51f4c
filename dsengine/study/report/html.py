"""HTML as nested calls. Text is escaped unless it is `Html`, so nothing that a config or a label says can become markup."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence

_VOID = {"meta", "img", "br", "hr", "col"}


class Html(str):
    """Text that is markup already."""


Child = object  # Html, or anything whose text is to be shown; None is nothing


def tag(name: str, attributes: Mapping[str, object] | None = None, *children: Child) -> Html:
    """One element. attributes: values are escaped; True is an attribute without a value, None and False leave it out."""
    written = "".join(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
                      for key, value in (attributes or {}).items() if value is not None and value is not False)
    return Html(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Elements and texts one after another."""
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None))


def paragraph(text: Child, *, kind: str | None = None) -> Html:
    """`kind` is a class of the style sheet, such as "missing"."""
    return tag("p", {"class": kind}, prose(text))


def prose(text: Child) -> Html:
    """Plain text in which what stands between backticks is set as code."""
    if isinstance(text, Html):
        return text
    return join(tag("code", None, part) if k % 2 else part for k, part in enumerate(re.split(r"`([^`]+)`", str(text))))


def missing(why: str) -> Html:
    """What stands in the place of a part that is not there."""
    return paragraph(why, kind="missing")


def table(head: Sequence[Child], rows: Iterable[Sequence[Child]], *, caption: str, numbers: Sequence[int] = ()) -> Html:
    """A table that scrolls by itself where it is wider than the page. The first cell of a row heads it; columns `numbers` are set to the right."""
    kind = lambda k: "number" if k in numbers else None  # noqa: E731
    top = tag("tr", None, *(tag("th", {"scope": "col", "class": kind(k)}, text) for k, text in enumerate(head)))
    lines = [tag("tr", None, *(tag("td" if k else "th", {"class": kind(k), "scope": None if k else "row"}, text) for k, text in enumerate(row)))
             for row in rows]
    whole = tag("table", None, tag("caption", None, caption), tag("thead", None, top), tag("tbody", None, *lines))
    return tag("div", {"class": "scroll", "role": "region", "aria-label": caption, "tabindex": "0"}, whole)


def facts(pairs: Iterable[tuple[str, Child]]) -> Html:
    """Names and values."""
    return tag("dl", {"class": "facts"}, *(tag("div", None, tag("dt", None, name), tag("dd", None, prose(value))) for name, value in pairs))


def folded(title: str, *children: Child) -> Html:
    """A part that opens when it is asked for; printed open."""
    return tag("details", None, tag("summary", None, title), *children)


def figure(content: Html, caption: Child, *, kind: str) -> Html:
    """A figure with its caption above it; `kind` is a class of the style sheet."""
    return tag("figure", {"class": kind}, tag("figcaption", None, caption), content)


def data_uri(content: bytes, mime: str) -> str:
    """A file as an address that holds it."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
