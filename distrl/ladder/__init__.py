"""`distrl ladder --run`: all five rungs trained side by side, their curves in one report."""

from distrl.ladder.runs import run_ladder

__all__ = ["run_ladder"]
