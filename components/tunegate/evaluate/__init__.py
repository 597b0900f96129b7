"""evaluate: how well a model does on the held-out rows, row by row, with lm-evaluation-harness."""
