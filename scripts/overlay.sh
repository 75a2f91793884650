# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What this project adds to a kernel tree: its own files, and patches/ applied
# to copies of the files that they change. Runs in the build root.

series=7.3 # the kernels that patches/ applies to

# stage BASE FOLDER: fills FOLDER with every file that differs from BASE once
# this project is laid on it.
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

# Copies FROM/… (whole folder) to stage/TO/…
overlay() {
	local file
	[ -d "$top/$1" ] || return 0
	while IFS= read -r file; do
		[ ! -e "$base/$2/$file" ] ||
			die "$1/$file would replace a file that the kernel has; make the change a patch in patches/"
		mkdir -p "$stage/$2/$(dirname "$file")"
		cp "$top/$1/$file" "$stage/$2/$file"
	done < <(cd "$top/$1" && find . -type f ! -name '*~' ! -name '.*.sw?' -printf '%P\n')
}

# The files that a patch changes or makes.
patched_files() {
	sed -nE 's,^(---|\+\+\+) [ab]/([^\t]*).*,\2,p' "$1" | sort -u
}

# Applies patches/*.patch to copies of the files that they change.
patch_files() {
	local patch file error
	for patch in "$top"/patches/*.patch; do
		grep -q '^diff --git ' "$patch" || continue
		while IFS= read -r file; do
			[ -e "$stage/$file" ] || [ ! -e "$base/$file" ] ||
				{ mkdir -p "$stage/$(dirname "$file")" && cp "$base/$file" "$stage/$file"; }
		done < <(patched_files "$patch")
		# Outside any repository, so that git takes the files as they are.
		if ! error=$(cd "$stage" && GIT_CEILING_DIRECTORIES=$(dirname "$stage") git apply --whitespace=nowarn "$patch" 2>&1); then
			error=$(head -n 1 <<<"$error" | sed 's/^error: //')
			if (cd "$stage" && GIT_CEILING_DIRECTORIES=$(dirname "$stage") git apply --reverse --check "$patch" 2>/dev/null); then
				die "${patch#"$top/"} is already in $base; set LINUX to a tree without it, or remove $build/base to get Debian's again"
			fi
			die "${patch#"$top/"} does not apply to $base, Linux $(version "$base") ($error); adapt the patch, or use another $series tree"
		fi
	done
}

# The version in the Makefile of a kernel tree, as 7.3.4.
version() {
	awk -F ' *= *' '/^VERSION =/ { v = $2 } /^PATCHLEVEL =/ { p = $2 } /^SUBLEVEL =/ { s = $2; exit }
		END { print v "." p "." s }' "$1/Makefile"
}
