"""Exports an adapter as plain LoRA of one rank, which vLLM and PEFT load."""
