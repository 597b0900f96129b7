"""AutoAWQ and AutoGPTQ, whose last versions need libraries of their time: a process of an environment of its own."""
