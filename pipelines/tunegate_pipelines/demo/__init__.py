"""The demonstration: a small real model and real rows, both taken from installed wheels, so that no hub is needed."""
