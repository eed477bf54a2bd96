"""Campaigns against a running federation: faults, and the links between its parts."""
