"""How surprised the model is by the expected completion."""
