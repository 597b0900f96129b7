"""tunegate: fine-tune, merge, quantize, evaluate, and promote only what the evaluations of the merged model allow."""
