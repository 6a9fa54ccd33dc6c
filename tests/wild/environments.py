"""Situations: environments as people bring them."""

from __future__ import annotations

from tests.wild.situation import Situation

SITUATIONS: list[Situation] = []
