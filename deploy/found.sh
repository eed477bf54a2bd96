#!/bin/sh
# Runs when the broker is healthy: founds the federation, once, and hands every party its own files, and nobody else's.
# Takes the task and the institutions, whose volumes are mounted in /parties.
set -eu

task=$1
shift
if [ ! -e /federation/.handed-out ]; then
    words=""
    for institution in "$@"; do
        words="$words --institution $institution"
    done
    # Broker, certificates and the administrator's password are in the folder; none is a word of a command or of the environment.
    # shellcheck disable=SC2086  # one word per option
    fedqueue init --dir /federation --task "$task" --sample-data $words

    cd /federation
    cp -a aggregator.toml aggregator run.secret members.txt task.toml held_out.csv /parties/aggregator/
    for institution in "$@"; do
        cp -a "institutions/$institution/." "/parties/$institution/"
    done
    chown -R 10001:10001 /parties/*
    : >.handed-out
fi
python /deploy/hand_to_console.py
