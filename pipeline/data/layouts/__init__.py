"""One reading function for each layout of a public evaluation set. ``public_sets.py`` has the table of them."""
