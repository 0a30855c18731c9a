"""What alignment changed, and why: questions about a finished run, each with a number, an interval and a sentence."""
