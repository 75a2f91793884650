# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Shared by the scripts that run the kernel's make. They set `out`, the folder of the
# build, and may set `tree`, the source, `config_file`, variables for its kconfig, and
# `replaced`, files or folders that the build sees in place of others.

tree=$build/linux
config_file=()
replaced=()

# Settings that reach the compiler's command line are the same for all configurations,
# so that ccache can serve them all from one cache.
kmake() {
	"$top/scripts/enter" "${replaced[@]}" env KBUILD_BUILD_TIMESTAMP=@0 "${config_file[@]}" \
		make -C "$tree" LLVM=-22 CC="ccache clang-22" O="$out" -j$(($(nproc) + 1)) "$@"
}

# dropped_options WANTED GOT: prints the options that the file WANTED sets and the
# configuration GOT does not have, in one line.
dropped_options() {
	sed -nE 's/^(CONFIG_[A-Z0-9_]+)=(.*)/\1 \2/p; s/^# (CONFIG_[A-Z0-9_]+) is not set/\1 n/p' "$1" |
		awk 'NR == FNR { if (match($0, /^CONFIG_[A-Z0-9_]+=/)) have[substr($0, 1, RLENGTH - 1)] = substr($0, RLENGTH + 1); next }
			{ want[$1] = $2 }
			END { for (o in want) if ((o in have ? have[o] : "n") != want[o]) print o }' "$2" - |
		sort | paste -sd' '
}

count_objects() {
	grep -cE '^  (AS|CC|RUSTC)( |\[|$)' "$1" || :
}

progress() {
	local made
	made=$(count_objects "$1")
	printf '%d objects%s: %s' "$made" "${of-}" "$(tail -n 1 "$1" | cut -c -50)"
}

# show_error LOG: prints the first lines of LOG that say why the build failed.
show_error() {
	grep -E -m 3 -A 12 '(^|[^a-z])(error(\[E[0-9]+\])?|fatal error|undefined symbol|ERROR):' "$1" | sed 's/^/    | /' >&2
}
