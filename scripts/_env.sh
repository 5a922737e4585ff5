# shellcheck shell=bash
# What the scripts share: the checkout, its virtual environment, and the servers. Sourced, never run.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
cd "$ROOT" || exit

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONUNBUFFERED=1
# An index may be slow, or away for a moment.
export PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-60}
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
unset PYTHONDONTWRITEBYTECODE # with it, each of the many processes would compile all modules again

say() { printf '%s\n' "$*" >&2; }

die() { # what is wrong and what to do; exit code 2
    say "error: $*"
    exit 2
}

quietly() { # COMMAND...: shows what a command printed only if it fails
    local log
    log=$(mktemp)
    if "$@" > "$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    tail -n 40 "$log" >&2
    rm -f "$log"
    return 1
}

persistently() { # COMMAND...: tries it up to three times, for what it downloads from may be away for a moment
    local pause
    for pause in 5 30; do
        "$@" && return 0
        say "That failed; once more in $pause s ..."
        sleep $pause
    done
    "$@"
}

# ------------------------------------------------------------------------------------------------- system packages

as_root() { # COMMAND...: runs it as root, or fails if that can't be done without a password
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

can_apt_install() { command -v apt-get > /dev/null && as_root true; }

apt_install() { # PACKAGE...
    # RUNLEVEL=1: a server that comes with its package need not start; we run private ones.
    local options=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q)
    options+=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=5)
    say "Installing $* with apt-get ..."
    # The package lists may be missing or old, and updating them takes time: try without first.
    quietly as_root "${options[@]}" install -y --no-install-recommends "$@" 2> /dev/null && return 0
    persistently apt_update_and_install "$@"
}

apt_update_and_install() { # PACKAGE...; with the options of apt_install. Not all of apt's locks are waited for.
    quietly as_root "${options[@]}" update || say "warning: apt-get update failed"
    quietly as_root "${options[@]}" install -y --no-install-recommends "$@"
}

need_programs() { # PACKAGE...: makes sure that the programs for which these Debian packages are needed are there
    local package missing=()
    for package in "$@"; do
        has_program "$package" || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return 0
    if ! can_apt_install; then
        die "${missing[*]} missing, and this user may not install packages. Run this, then try again:
    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]} $(venv_package)"
    fi
    apt_install "${missing[@]}" || die "apt-get could not install ${missing[*]}; its last words are above"
    for package in "${missing[@]}"; do
        has_program "$package" || die "$package is installed, but its program was not found"
    done
}

has_program() { # PACKAGE
    case $1 in
        redis-server) command -v redis-server > /dev/null || command -v valkey-server > /dev/null ;;
        rabbitmq-server) { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server > /dev/null; } &&
            command -v epmd > /dev/null ;;
        chromium) command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null ;;
        openssl) command -v openssl > /dev/null ;;
        procps) command -v ps > /dev/null ;;
        tmux) command -v tmux > /dev/null ;;
        postgresql) compgen -G '/usr/lib/postgresql/*/bin/postgres' > /dev/null || command -v postgres > /dev/null ;;
        *) return 1 ;;
    esac
}

# ------------------------------------------------------------------------------------------------------ the venv

is_python() { # COMMAND: tells whether it is Python 3.10 or newer
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' > /dev/null 2>&1
}

find_python() { # sets PYTHON, the real path of an interpreter
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python3.14 python}; do
        if is_python "$name"; then
            PYTHON=$("$name" -c 'import os, sys; print(os.path.realpath(sys.executable))')
            return 0
        fi
    done
    [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not Python 3.10 or newer"
    if ! { can_apt_install && apt_install python3 python3-venv && is_python python3; }; then
        die "Python 3.10 or newer is needed. On Debian or Ubuntu: sudo apt-get install python3 python3-venv"
    fi
    PYTHON=$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')
}

find_newer_python() { # prints a Python that is 3.12 or newer, if there is one
    local candidate
    for candidate in python3.13 python3.12 python3.14 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
        if "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 12))' > /dev/null 2>&1; then
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return 0
        fi
    done
}

venv_is_good() { # whole, made here, and by this Python
    [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/.made-by" 2> /dev/null)" = "$1" ] &&
        "$VENV/bin/python" -c 'import pip' 2> /dev/null
}

make_venv() {
    find_python
    local made_by
    made_by="$PYTHON $("$PYTHON" -c 'import platform; print(platform.python_version())') in $ROOT"
    venv_is_good "$made_by" && return 0

    say "Making a virtual environment in .venv with $("$PYTHON" --version) ..."
    rm -rf "$VENV"
    if ! "$PYTHON" -m venv "$VENV" > /dev/null 2>&1; then
        rm -rf "$VENV"
        make_venv_without_venv
    fi
    printf '%s\n' "$made_by" > "$VENV/.made-by"
}

venv_package() { # prints the Debian package without which this Python makes no virtual environments, if it is missing
    (
        find_python
        "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null ||
            "$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
    ) 2> /dev/null || printf 'python3 python3-venv\n'
}

make_venv_without_venv() { # Debian keeps the modules venv and ensurepip in a package of its own
    local package
    package=$(venv_package)
    if can_apt_install; then
        apt_install "${package:-python3-venv}" || apt_install python3-venv || true
        "$PYTHON" -m venv "$VENV" > /dev/null 2>&1 && return 0
        rm -rf "$VENV"
    fi
    if "$PYTHON" -m pip --version > /dev/null 2>&1; then
        # Newer Debian and Ubuntu allow this in the user's own folder only when told so.
        "$PYTHON" -m virtualenv --version > /dev/null 2>&1 ||
            quietly "$PYTHON" -m pip install --user virtualenv 2> /dev/null ||
            quietly "$PYTHON" -m pip install --user --break-system-packages virtualenv || true
        "$PYTHON" -m virtualenv -q "$VENV" && return 0
        rm -rf "$VENV"
    fi
    die "$PYTHON can't make a virtual environment. Run this, then try again:
    sudo apt-get update && sudo apt-get install -y ${package:-python3-venv}"
}

stamp_of() { # PIP ARGUMENT...: what an installation depends on
    { cat pyproject.toml src/taskbridge/_version.py "$VENV/.made-by" && printf '%s\n' "$@"; } | sha256sum
}

install_into_venv() { # NAME, PIP ARGUMENT...: installs what NAME needs, if it has changed since the last time
    local name=$1 stamp
    shift
    make_venv
    # pip compiles what it installs, but not what it installs as a link to a folder: without this, where Python may not
    # write bytecode, every process compiles the package anew.
    "$VENV/bin/python" -m compileall -q src || true
    stamp=$(stamp_of "$@")
    [ "$(cat "$VENV/.installed-$name" 2> /dev/null)" = "$stamp" ] && return 0

    say "Installing what $name needs into .venv ..."
    rm -f "$VENV/.installed-$name"
    local pip=("$VENV/bin/python" -m pip install -q)
    # Dependency groups came with pip 25.1.
    if ! { persistently quietly "${pip[@]}" 'pip>=25.1' && persistently quietly "${pip[@]}" "$@"; }; then
        die "pip could not install what $name needs; its last words are above"
    fi
    printf '%s\n' "$stamp" > "$VENV/.installed-$name"
}

other_venv() { # NAME, PYTHON, PACKAGE...: makes .venv-NAME with these packages, or fails with a warning
    local name=$1 python=$2 venv=$ROOT/.venv-$1 wanted
    shift 2
    wanted="$python $*"
    [ "$(cat "$venv/.installed" 2> /dev/null)" = "$wanted" ] && return 0
    say "Installing $* into .venv-$name ..."
    rm -rf "$venv"
    if ! { "$python" -m venv "$venv" && persistently quietly "$venv/bin/python" -m pip install -q "$@"; }; then
        say "warning: they can't be installed"
        return 1
    fi
    printf '%s\n' "$wanted" > "$venv/.installed"
}

django_venv() { # NAME, DJANGO: makes .venv-NAME with this Django and what its tests need, or fails with a warning
    local newer
    newer=$(find_newer_python)
    if [ -z "$newer" ]; then
        say "warning: Django $2 needs Python 3.12 or newer, and none was found: install one, or put it on PATH as python3.12"
        return 1
    fi
    other_venv "$1" "$newer" -e '.[all]' "django==$2.*" gunicorn hypothesis psycopg-pool pytest pytest-xdist
}
newest_django_venv() { django_venv django 6.1; }
