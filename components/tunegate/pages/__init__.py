"""Self-contained HTML that the KFP UI can show in its sandboxed frame: no external scripts, styles or fonts."""
