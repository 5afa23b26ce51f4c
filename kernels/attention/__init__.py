"""SAGAN self-attention with residual: softmax(q k^T) v, scaled by gamma, plus x."""
