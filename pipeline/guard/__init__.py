"""A guard of the aligned model: it reads the model's own states, and replaces a harmful reply by a refusal."""
