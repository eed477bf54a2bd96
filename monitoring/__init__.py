"""What a worker tells the machine it runs on: whether it lives, whether it is ready, and its figures."""
