#!/bin/sh
# Runs once when the broker is healthy: founds the federation and hands every party its own files, and nobody else's.
# Takes the task and the institutions, whose volumes are mounted in /parties.
set -eu

task=$1
shift
if [ -e /federation/.handed-out ]; then
    exit 0
fi

words=""
for institution in "$@"; do
    words="$words --institution $institution"
done
AMQP_URL="amqp://admin:$(cat /administrator/password)@rabbitmq:5672/fedqueue"
MANAGEMENT_URL=http://rabbitmq:15672
export AMQP_URL MANAGEMENT_URL
# shellcheck disable=SC2086  # one word per option
fedqueue init --dir /federation --task "$task" --sample-data $words

cd /federation
cp -a aggregator.toml aggregator run.secret members.txt task.toml held_out.csv /parties/aggregator/
for institution in "$@"; do
    cp -a "institutions/$institution/." "/parties/$institution/"
done
chown -R fedqueue:fedqueue /federation /parties
: >.handed-out
