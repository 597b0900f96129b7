"""costs: what a server costs under a stated load: latency, throughput, memory; measured, and set side by side."""
