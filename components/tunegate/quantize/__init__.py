"""quantize: a merged model made smaller with llm-compressor, calibrated on the train side."""
