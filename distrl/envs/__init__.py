"""Environments: fixed groups over gymnasium that can be put back exactly. Floor 1."""
