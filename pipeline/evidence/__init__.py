"""Evidence of a run: its event log, approvals, and bundles that another machine can check."""
