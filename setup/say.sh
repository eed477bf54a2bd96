# shellcheck shell=sh
# Sourced by the set-up scripts: short sentences for people, everything else into build/setup.log.

log=build/setup.log

say() {
    printf '%s\n' "$*"
}

fail() {
    printf 'set-up stopped: %s\n' "$*" >&2
    exit 1
}

logged() {
    printf '+ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null
}
