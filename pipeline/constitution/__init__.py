"""The written constitution: its schema, its files, and the questions of critique and revision."""
