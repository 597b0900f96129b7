"""An alias on a cluster: a KServe InferenceService whose new versions prove themselves as a canary first."""
