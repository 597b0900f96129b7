"""serve_check: the engine that will serve, on the very bytes that were judged, held against the evaluated model."""
