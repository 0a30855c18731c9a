"""Alignment methods: on pairs, on single replies, and by policy gradient."""
