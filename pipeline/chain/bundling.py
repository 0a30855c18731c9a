"""``cai bundle`` and ``cai approve``: find the run, then write its evidence or an entry of its event log."""

from __future__ import annotations

from pathlib import Path

from pipeline.chain.runs import Ending, find_run, report_anew
from pipeline.core.log import say
from pipeline.evidence.approve import GUIDELINES, approval_of, approve, gate_of, override
from pipeline.evidence.bundle import Options, write_bundle


def bundle_run(output_dir: str, name: str, output: Path | None, options: Options) -> Path:
    """Write the bundle of a run. Returns its folder.

    Raises:
        ConfigError: there is no such run, or an option can't be used.
        ArtifactError: the run is not finished, or a file of it is not as it was written.
    """
    run = find_run(output_dir, name).resolve()
    target = output.expanduser() if output else Path(output_dir).expanduser() / "bundles" / run.name
    write_bundle(run, target, options)
    say(f"check it with: cai verify {target}")
    return target


def approve_run(output_dir: str, name: str, guideline: str | None, by: str, note: str) -> Ending:
    """Approve a run as its report is now; or override a guideline, and write the report again with that.

    Raises:
        ConfigError: there is no such run or guideline, the name or the note is empty, the run has no report, or the
            gate says FAIL.
        ArtifactError: its log is damaged.
    """
    run = find_run(output_dir, name).resolve()
    if guideline is not None:
        override(run, guideline, by, note)
        kept = run / GUIDELINES
        return report_anew(output_dir, str(run), str(kept) if kept.is_file() else None)
    accepted = approve(run, by, note)
    say(f"approved: {run.name} by {by}, for the report with the hash {accepted[:16]}…")
    gate = gate_of(run)
    return Ending(gate.verdict if gate else None, approval_of(run).awaited)
