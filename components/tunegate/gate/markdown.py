"""The verdict as Markdown, for a pull request."""

from __future__ import annotations

from tunegate.contracts.verdict import Verdict

_ROWS_SHOWN = 5


def verdict_markdown(verdict: Verdict) -> str:
    """The decision, its sentence and a table of the checks."""
    lines = [f"# Verdict: {verdict.decision}", "", verdict.summary, ""]
    lines += [line for text in verdict.warnings for line in (f"> **Warning.** {text}", "")]
    lines += ["| decision | check | why |", "|---|---|---|"]
    lines += [f"| {check.decision} | {_cell(check.rule)} | {_cell(check.reason)} |" for check in verdict.checks]
    decided = [check for check in verdict.checks if check.decision != "PASS" and check.rows]
    if decided:
        lines += ["", "## Rows that decided", ""]
    for check in decided:
        more = f" and {len(check.rows) - _ROWS_SHOWN} more" if len(check.rows) > _ROWS_SHOWN else ""
        shown = ", ".join(f"`{row}`" for row in check.rows[:_ROWS_SHOWN])
        lines.append(f"- {check.rule}: {shown}{more}")
        lines += [f"  - {shared}" for shared in check.shared]
    lines += ["", "| judged | content digest |", "|---|---|"]
    judged = {**verdict.subjects, "policy": verdict.policy_digest}
    lines += [f"| {role} | `{digest}` |" for role, digest in judged.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
