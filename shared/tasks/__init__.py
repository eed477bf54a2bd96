"""What is learned: the declared columns, the model, the loss and the figures by which it is judged."""
