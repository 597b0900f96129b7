"""The Kubeflow pipelines of tunegate, their recipes, and what compiles and runs them."""
