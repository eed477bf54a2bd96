"""What both sides of a federation must agree on: messages, codec, lineage, parameters, errors, tasks."""
