"""The frame of the HTML reports: one file, nothing fetched, readable on a phone, light and dark."""

import html

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A whole page; `title` is plain text, `body` HTML, `style` CSS after `STYLE`."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}</body>
</html>
"""
