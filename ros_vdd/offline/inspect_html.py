# SPDX-License-Identifier: Apache-2.0
"""HTML from nested calls, in which every text that isn't markup already is escaped; and one page that asks nothing of the net.

A name or a task inside a data set may be anything, also `<script>`. Text can only get into a page through `tag`, which
escapes it; and the page's Content-Security-Policy runs the one script whose hash it names, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable
from typing import Any

from ros_vdd import __version__

EMPTY = frozenset({"meta", "img", "br", "input", "hr", "link", "col"})


class Markup(str):
    """Text that is HTML already; made by `tag`, or from constants of this package, and from nothing else."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Return one element.

    Args:
        children: Markup as it is, lists flattened, None left out, anything else as escaped text.
        attributes: `class_` and `for_` lose their underscore, others turn theirs into hyphens; None and False are left out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    if name in EMPTY:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Return children one after the other, as `tag` takes them."""
    return Markup("".join(map(_child, children)))


def page(title: str, body: Iterable[Any], style: str, script: str) -> str:
    """Return a whole document.

    Args:
        style, script: constants of this package, written as they are.
    """
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    policy += "; base-uri 'none'; form-action 'none'"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"ros_vdd {__version__}"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        tag("style", Markup(style)),
    ]
    end = tag("script", Markup(script))
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', list(body), end), lang='en')}\n"


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], **attributes: Any) -> Markup:
    """Return a table that scrolls by itself on a narrow screen; a cell may be a `td` already."""
    top = tag("thead", tag("tr", [c if _is(c, "th") else tag("th", c) for c in head]))
    body = tag("tbody", [r if _is(r, "tr") else tag("tr", [c if _is(c, "td") else tag("td", c) for c in r]) for r in rows])
    return tag("div", tag("table", top, body, **attributes), class_="scroll")


def _is(value: Any, name: str) -> bool:
    return isinstance(value, Markup) and value.startswith((f"<{name}>", f"<{name} "))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value), quote=True)}"'


def _child(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    if isinstance(value, (list, tuple)) or hasattr(value, "__next__"):
        return join(value)
    return html.escape(str(value), quote=False)
