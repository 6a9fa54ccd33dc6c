"""What the self-contained HTML pages share: how a template is read and how a page replaces the one before."""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates(folder: Path) -> Environment:
    """Jinja's environment over `folder`: it escapes, and a name that a template lacks is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, html: str) -> None:
    """Replaces `path` in one step, so that a browser never reads half a page. OSError from the disk."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(html, encoding="utf-8")
    aside.replace(path)
