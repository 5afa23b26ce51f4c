"""NT-Xent over two or more views and InfoNCE with given keys, without the matrix of similarities."""
