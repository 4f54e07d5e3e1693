"""MkDocs hook: turns the formulas of a page into MathML, so that the site shows them without a script or a network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex (generic) makes of $…$ and $$…$$.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Return the HTML of a page with MathML in the place of LaTeX."""
    return FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    tag, bracket, latex = found.groups()
    display = "block" if bracket == "[" else "inline"
    # The converter knows align*, which is aligned for a formula that stands alone.
    latex = unescape(latex).strip().replace("{aligned}", "{align*}")
    # Browsers of MathML Core align the columns of a table by style alone.
    formula = re.sub(r'columnalign="(left|right)"', r'style="text-align: \1"', convert(latex, display=display))
    if "<mi>&</mi>" in formula:
        raise ValueError(f"latex2mathml does not know an environment of the formula {latex!r}")
    return f'<{tag} class="formula">{formula}</{tag}>'
