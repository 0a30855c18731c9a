"""Judges, text measures and statistics."""
