"""Fine-tunes with TRL and PEFT."""
