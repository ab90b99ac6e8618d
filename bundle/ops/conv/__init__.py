"""The 3x3 convolution: one function, PyTorch's form and the native one for inference."""
