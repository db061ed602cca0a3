"""Reports as pages of HTML that need nothing beside themselves."""

from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } td, th { padding: .3em .8em; border-bottom: 1px solid #ccc; }
td, th { text-align: left; } td + td, th + th { text-align: right; }
table.told td:first-child { white-space: pre; }
table.told td:nth-child(3), table.errors td { text-align: left; }
figure { display: inline-block; margin: 0; width: 480px; vertical-align: top; }
svg { width: 100%; } svg text { font: 11px system-ui, sans-serif; } svg .title { font-size: 13px; }
svg .grid { stroke: #ddd; } .good { color: #1a7f37; } .bad { color: #d1242f; }
.warn { color: #9a6700; } pre { background: #f6f8fa; padding: 1em; overflow-x: auto; }
"""


def page(title: str, body: str) -> str:
    """A whole page; the body is HTML already."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>{body}</html>"
    )


def html_table(rows: Sequence[Sequence[str]], of: str = "figures") -> str:
    """A table of text, the first row its heading."""

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    heading, *others = rows
    body = f"{line(heading, 'th')}{''.join(line(row, 'td') for row in others)}"
    return f'<table class="{of}">{body}</table>'
