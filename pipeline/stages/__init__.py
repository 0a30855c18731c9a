"""One thin file a stage: read, call, write."""
