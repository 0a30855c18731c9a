"""The only rooms that import trl and peft."""
