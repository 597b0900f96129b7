"""Safetensors shards, adapter algebra and NF4, as plain functions."""
