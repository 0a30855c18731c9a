"""Used by all other parts: errors, messages, settings, the cache, ranks and trackers."""
