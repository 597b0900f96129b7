"""Our own tasks, each a YAML file of lm-evaluation-harness with its scorer beside it."""
