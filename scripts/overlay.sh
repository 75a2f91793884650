# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The files that this project adds to a kernel tree: its own files, and the files that
# patches/ changes, as patched copies. Runs in the build root.

series=7.3 # the kernels that patches/ applies to

# stage BASE FOLDER: fills FOLDER with every file that differs from BASE in a tree with
# this project.
stage() {
	local base=$1 stage=$2
	rm -rf "$stage" && mkdir -p "$stage/io_uring_rs"
	patch_files
	overlay io_uring_rs io_uring_rs
	overlay kunit io_uring_rs/kunit
	overlay rust rust
	overlay include include
	overlay Documentation Documentation
	cp "$top/Kconfig" "$stage/io_uring_rs/Kconfig"
}

# overlay FROM TO: copies all files in FROM/ to stage/TO/.
overlay() {
	local file
	[ -d "$top/$1" ] || return 0
	while IFS= read -r file; do
		[ ! -e "$base/$2/$file" ] ||
			die "$base already has $2/$file, which this project adds; use a tree without it, or turn ours into a patch in patches/"
		mkdir -p "$stage/$2/$(dirname "$file")"
		cp "$top/$1/$file" "$stage/$2/$file"
	done < <(cd "$top/$1" && find . -type f ! -name '*~' ! -name '.*.sw?' -printf '%P\n')
}

# Prints the folders of the series in patches/, such as 2-filters, in the order in which
# they are sent.
all_series() {
	(cd "$top/patches" && printf '%s\n' [0-9]-*/) | sed 's,/$,,'
}

# Prints the files that a patch changes or creates.
patched_files() {
	sed -nE 's,^(---|\+\+\+) [ab]/([^\t]*).*,\2,p' "$1" | sort -u
}

# Returns whether the project has the file of the kernel tree itself. A hunk for such a
# file says what the patch adds to an earlier state of the file: the project has the
# file as it is after all patches.
is_own() {
	case $1 in
	io_uring_rs/Kconfig) [ -f "$top/Kconfig" ] ;;
	io_uring_rs/kunit/*) [ -f "$top/${1#io_uring_rs/}" ] ;;
	io_uring_rs/* | rust/* | include/* | Documentation/*) [ -f "$top/$1" ] ;;
	*) false ;;
	esac
}

# named LIST PATCH: prints the files that a patch lists between its message and its
# hunks, such as "New files".
named() {
	sed -n '/^---$/,/^diff --git /p' "$2" | sed -n "/^$1:\$/,/^\$/s/^  //p"
}

# Applies the hunks of patches/ to copies of the kernel's files that they change.
patch_files() {
	local patch file files ours error
	for patch in "$top"/patches/[0-9]-*/*.patch; do
		files=0 ours=()
		while IFS= read -r file; do
			if is_own "$file"; then
				ours+=(--exclude="$file")
				continue
			fi
			files=$((files + 1))
			[ -e "$stage/$file" ] || [ ! -e "$base/$file" ] ||
				{ mkdir -p "$stage/$(dirname "$file")" && cp "$base/$file" "$stage/$file"; }
		done < <(patched_files "$patch")
		((files)) || continue
		# Lines that are only added may fit a second time, so the reverse is tried first.
		! outside apply --reverse --check "${ours[@]}" "$patch" 2>/dev/null ||
			die "${patch#"$top/"} is already in $base; use a tree without it (to get a new build/base, remove it)"
		if ! error=$(outside apply --whitespace=nowarn "${ours[@]}" "$patch" 2>&1); then
			error=$(head -n 1 <<<"$error" | sed 's/^error: //')
			die "${patch#"$top/"} does not apply to $base, Linux $(version "$base") ($error); adapt the patch, or use another $series tree"
		fi
	done
}

# Runs git in the stage, outside any repository, so that it takes the files as they are.
outside() {
	(cd "$stage" && GIT_CEILING_DIRECTORIES=$(dirname "$stage") git "$@")
}

# Prints the version from the Makefile of a kernel tree, such as 7.3.4.
version() {
	awk -F ' *= *' '/^VERSION =/ { v = $2 } /^PATCHLEVEL =/ { p = $2 } /^SUBLEVEL =/ { s = $2; exit }
		END { print v "." p "." s }' "$1/Makefile"
}
