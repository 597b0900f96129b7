"""What the harness calls for each row of ``tool_call``: the yaml file beside this one names it."""

from tunegate.models.tool_calls import process_results

__all__ = ["process_results"]
