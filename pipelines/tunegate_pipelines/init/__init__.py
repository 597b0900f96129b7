"""What ``tunegate init`` writes for a person's own data: a recipe with its policy, and a task."""
