# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Shared by the shell scripts: paths, one way to fail, one way to show a long step and
# its duration, and locks.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
build=$top/build
logs=$build/log

trap 'trap - INT TERM; printf "\ninterrupted: run the same command again to go on\n" >&2; exit 130' INT TERM

say() {
	printf '%s\n' "$*"
}

# die CAUSE-AND-REMEDY: ends a failing command with one line that says both.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

clock() {
	printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

# Prints what tick() shows beside the clock. A script may define its own.
progress() {
	tail -c 300 "$1" | tr '\r' '\n' | grep . | tail -n 1 | cut -c -60
}

# Shows LABEL and the time since the start until the script ends: on a terminal in
# place, elsewhere as a line every half minute.
tick() {
	local label=$1 log=$2 begin=$SECONDS
	trap - INT TERM
	[ -z "${lockfd-}" ] || exec {lockfd}>&-
	while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
		if [ -t 1 ]; then
			printf '\r\e[K%6s  %s … %s' "$(clock $((SECONDS - begin)))" "$label" "$(progress "$log")"
		elif (((SECONDS - begin) % 30 == 0)); then
			printf '%6s  %s … %s\n' "$(clock $((SECONDS - begin)))" "$label" "$(progress "$log")"
		fi
	done
}

# step LABEL LOG COMMAND…: runs COMMAND with its output in LOG and shows how long it has
# been running. Returns the status of COMMAND. Bash ignores `set -e` in a COMMAND that
# is a function: it must return each failure itself.
step() {
	local label=$1 log=$2 begin=$SECONDS status=0 ticker
	shift 2
	mkdir -p "$logs"
	: >"$log"
	[ -t 1 ] || say "    --  $label"
	tick "$label" "$log" &
	ticker=$!
	"$@" >"$log" 2>&1 </dev/null || status=$?
	kill "$ticker" 2>/dev/null
	wait "$ticker" 2>/dev/null || :
	[ ! -t 1 ] || printf '\r\e[K'
	if ((status)); then
		printf '%6s  %s: failed\n' "$(clock $((SECONDS - begin)))" "$label"
	else
		printf '%6s  %s\n' "$(clock $((SECONDS - begin)))" "$label"
	fi
	return "$status"
}

# fail WHAT LOG: ends the script with the cause that LOG shows, and its remedy.
fail() {
	local what=$1 log=$2
	if grep -qi 'no space left on device\|ENOSPC\|not enough free space' "$log"; then
		die "$what: the disk is full; free some space and run it again"
	elif grep -qiE 'could not resolve|temporary failure|name resolution|network is unreachable|(could not|unable to|failed to|cannot initiate the) connect|connection (refused|timed out)' "$log"; then
		die "$what: the package archive cannot be reached; check the network (or set http_proxy) and run it again"
	elif grep -qE 'NO_PUBKEY|EXPKEYSIG|is not signed|Missing key' "$log"; then
		die "$what: this machine lacks the archive's keys; run 'apt-get install debian-archive-keyring' and try again"
	fi
	tail -n 15 "$log" | sed 's/^/    | /' >&2
	die "$what; fix the error above and run it again (whole log: $log)"
}

# lock NAME: keeps other runs waiting until this one, and all processes that it started,
# have ended.
lock() {
	mkdir -p "$build"
	exec {lockfd}>"$build/.lock-$1"
	if ! flock --nonblock "$lockfd"; then
		say "waiting for another run that uses $1 in $build"
		flock "$lockfd"
	fi
}

# need_space GIGABYTES DIRECTORY WHAT: fails unless DIRECTORY has that much space for
# WHAT.
need_space() {
	local free
	free=$(df --output=avail --block-size=1M "$2" | tail -n 1)
	((free >= $1 * 1024)) ||
		die "$3 needs $1 GB in $2 and $((free / 1024)) GB are free; free some space and run it again"
}

# Sets `isolate` to the options with which bubblewrap works here; fails if none do. Root
# needs no user namespace, and often may not create one. Users always need one, and so
# does root without its capabilities, as in some containers.
find_isolation() {
	local user=(--unshare-user --uid 0 --gid 0)
	isolate=(--unshare-pid --die-with-parent)
	if ((UID == 0)) && bubblewrap_works; then
		return 0
	fi
	isolate+=("${user[@]}")
	bubblewrap_works
}

bubblewrap_works() {
	bwrap "${isolate[@]}" --bind / / --dev /dev --proc /proc true 2>/dev/null
}
