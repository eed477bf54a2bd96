#!/bin/sh
# Runs once in the RabbitMQ image, before the broker: draws the administrator's password and writes the definitions that
# the broker loads, in which there is only its salted hash.
set -eu

password=/administrator/password
definitions=/definitions/definitions.json

if [ -e "$definitions" ]; then
    exit 0
fi
(umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$password")
hash=$(rabbitmqctl --quiet hash_password "$(cat "$password")" | tail -n 1)
cat >"$definitions.new" <<JSON
{
  "users": [
    {
      "name": "admin",
      "password_hash": "$hash",
      "hashing_algorithm": "rabbit_password_hashing_sha256",
      "tags": ["administrator"]
    }
  ],
  "vhosts": [{"name": "/"}]
}
JSON
chmod 600 "$definitions.new"
chown rabbitmq:rabbitmq "$definitions.new"
mv "$definitions.new" "$definitions"
