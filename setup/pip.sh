# shellcheck shell=sh
# Sourced, after say.sh, by the set-up scripts that install Python packages: only what a lock names, ready-made and with the lock's hash.

install_locked() { # $1: the virtual environment, $2: the lock, the rest: pip's options
    environment=$1
    lock=locks/$2.lock
    shift 2
    if logged "$environment/bin/python" -m pip --disable-pip-version-check install --no-deps --require-hashes --only-binary :all: \
        --requirement "$lock" "$@"; then
        return 0
    fi
    if tail -n 20 "$log" | grep -q 'DO NOT MATCH THE HASHES'; then
        say "A file that pip was given is not the one that $lock names. Find out why before you install it in another way."
    fi
    return 1
}
