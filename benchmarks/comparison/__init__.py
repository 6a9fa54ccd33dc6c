"""The parts of speed.py: who is measured (sections), how (measuring), what it means (judging), and the limit."""
