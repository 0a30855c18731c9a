"""What every part stands on: errors, messages, settings, the cache, ranks, trackers."""
