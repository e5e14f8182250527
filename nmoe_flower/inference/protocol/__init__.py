"""What peers say to each other: messages, tensors as bytes, signed lists of who is there."""
