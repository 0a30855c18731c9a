"""The chain as a whole: its configuration, what runs, in what order, and what it costs."""
