"""How fast and how large fedqueue is: real workers, a real private broker, one figure per line of JSON."""
