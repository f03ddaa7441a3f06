"""report.html: everything inline, nothing fetched, readable on a phone."""

import base64
import html
from collections.abc import Sequence
from typing import Any

from rdfa.bench import environment as environments
from rdfa.bench.report.figures import TITLES
from rdfa.bench.report.table import notes, tables
from rdfa.bench.results import Row
from rdfa.html_page import document

_STYLE = """
tr.fastest { font-weight: 600; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
img { max-width: 100%; height: auto; background: #fff; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; overflow-wrap: anywhere; }
"""


def page(environment: dict[str, Any], rows: Sequence[Row], pictures: dict[str, bytes]) -> str:
    """The whole page; `pictures` from `figures.draw`."""
    found = "".join(_table(*table) for table in tables(rows))
    remarks = "".join(f"<li>{html.escape(line)}</li>\n" for line in notes(environment, rows))
    images = "".join(_figure(TITLES[name], png) for name, png in pictures.items())
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(_plain_text(value))}</dd>\n"
        for name, value in environment.items()
    )
    body = f"""<p>{html.escape(environments.summary(environment))}</p>
{found}<ul>
{remarks}</ul>
{images}<h2>Environment</h2>
<dl>
{facts}</dl>
"""
    return document(f"Serving benchmark: {environment['benchmark']['artifact']}", body, _STYLE)


def _table(names: Sequence[str], rows: Sequence[Row], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr{' class=fastest' if row.equal_to_fastest else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for row, cells in zip(rows, lines)
    )
    return f"""<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody>
</table></div>
"""


def _figure(title: str, png: bytes) -> str:
    image = base64.b64encode(png).decode()
    return f"""<figure><figcaption>{html.escape(title)}</figcaption>
<img alt="{html.escape(title)}" src="data:image/png;base64,{image}"></figure>
"""


def _plain_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_plain_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_plain_text, value))
    return "none" if value is None else str(value)
