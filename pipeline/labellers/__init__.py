"""AI feedback: who says which of two replies is the better one."""
