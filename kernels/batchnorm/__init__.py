"""Training BatchNorm over groups of samples, with the residual sum and the ReLU behind it in the same pass."""
