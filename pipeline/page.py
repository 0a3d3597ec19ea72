"""What the pages for readers share: templates that escape, what a browser may do with them, and when a number is too
uncertain to decide anything.

Not here: what a page says (`report.py`, `explorer.py`).
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import report_plots
from pipeline.estimate import Estimate

HERE = Path(__file__).parent
# A 95 % interval wider than this, on a scale from 0 to 1, decides nothing that a page is asked.
WIDE = 0.10


def templates() -> Environment:
    """The templates beside this file; text is escaped, and a name that nobody gave is an error."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(plots=report_plots, is_wide=is_wide)
    return environment


def inlined(*names: str) -> Markup:
    """Style sheets or scripts beside this file, to stand in a page as they are."""
    return Markup("\n".join((HERE / name).read_text() for name in names))


def security_policy(script: str = "") -> Markup:
    """The page's Content-Security-Policy: this one script may run, nothing is fetched, nothing is sent.

    So text that got past the escaping would still do nothing in a reader's browser.
    """
    allowed = [f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"]
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:"]
    rules += ["style-src 'unsafe-inline'", *(allowed if script else [])]
    return Markup(f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">')


def is_wide(estimate: Estimate) -> bool:
    """Whether an estimate on a scale from 0 to 1 is too uncertain to decide anything."""
    return estimate.high - estimate.low > WIDE
