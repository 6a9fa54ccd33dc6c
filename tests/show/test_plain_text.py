"""Any text is text in a figure."""

from __future__ import annotations

import warnings
from pathlib import Path

from distrl.show.style import page, plain_text


def test_dollars_are_no_formula_and_what_no_font_has_is_a_box_or_its_number() -> None:
    assert plain_text("cost $5 and $6") == r"cost \$5 and \$6"
    assert plain_text("a\tb\nc\x07") == "a·b↵c·"
    hieroglyph = "\U00013000"  # no font that figures use draws it
    assert plain_text(f"x{hieroglyph}") == "x□" and plain_text(hieroglyph, "<U+{:04X}>") == "<U+13000>"


def test_a_figure_of_any_text_is_drawn_without_a_warning(tmp_path: Path) -> None:
    text = plain_text("$x^2_{ \\frac{1}{2} $$ 你好 😀 ё \u202e \ud83d".encode("utf-8", "replace").decode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with page(tmp_path / "a.png", text, text, "caption", (6.0, 2.0)) as figure:
            figure.subplots().set_xticks([0, 1], [text, text])
    assert (tmp_path / "a.png").stat().st_size > 5_000
