"""Approval: a person says yes or no to a version that the gate let through, and no accelerator is held meanwhile."""
