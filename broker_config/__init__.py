"""Everything RabbitMQ: what the broker must hold, who may do what on it, and the one adapter over pika."""
