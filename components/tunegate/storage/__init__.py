"""Where versions and pointers live: one interface over a local folder and gs://, with compare-and-swap."""
