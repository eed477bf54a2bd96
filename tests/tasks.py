"""Tasks that more than one test founds or simulates with."""

RIPENESS = """
name = "ripeness"
kind = "binary"
[label]
column = "ripe"
positive = ["yes"]
negative = ["no"]
[[numeric]]
columns = ["weight", "colour"]
minimum = 0
maximum = 10
[model]
type = "logistic"
[training]
steps = 5
sample_rate = 0.5
learning_rate = 1.0
updates = 500
"""
ONE_COLUMN = """
name = "t"
kind = "binary"
metric = "accuracy"
[label]
column = "y"
positive = ["1"]
negative = ["0"]
[[numeric]]
columns = "x"
minimum = 0
maximum = 1
[model]
type = "logistic"
[aggregation]
server_learning_rate = 0.8
"""
