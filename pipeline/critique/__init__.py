"""Critique and revision: its settings and its rounds. ``stages/critique.py`` runs them."""
