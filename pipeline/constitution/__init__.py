"""The written constitution: its text, its files, what is asked in its name."""
