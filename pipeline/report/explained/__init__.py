"""The part of the report that answers questions about a run: for each, a sentence, a picture and tables."""
