"""The web console: what an operator sees of a federation in a browser, and the orders given there."""
