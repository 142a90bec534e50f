"""The online algorithms and their arithmetic: pure functions of tensors."""
