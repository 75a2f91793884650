# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Shared by lint and doc: the kernel build's commands, run again with another tool, and
# the documentation. Nothing is compiled for these. The functions run in the build root
# and need build/kernel-rust.

kernel=$build/kernel-rust
linux=$build/linux

need_kernel() {
	[ -e "$kernel/.built" ] || die "build/kernel-rust is not built; run 'make kernel'"
}

# saved OBJECT: prints the command that compiled OBJECT, without the commands after it.
saved() {
	local file=$kernel/${1%/*}/.${1##*/}.cmd
	# shellcheck disable=SC2016  # the dollars are make's
	sed -n 's/^savedcmd_[^ ]* := *//p' "$file" | sed 's/ ;.*//; s/\$\$/$/g; s/\$(pound)/#/g' | grep .
}

# rust_again TOOL OBJECT ARGUMENT…: runs TOOL in place of the rustc that compiled
# OBJECT, with warnings as errors.
rust_again() {
	local tool=$1 object=$2 command
	shift 2
	command=$(saved "$object" | sed -E "s/ rustc / $tool /; s/ --(emit|remap-path-scope)=[^ ]*//g; s/ --out-dir [^ ]*//") ||
		{ echo "error: build/kernel-rust/$object is not built; run 'make kernel'"; return 1; }
	# The kernel's Makefile sets these.
	(cd "$kernel" && RUSTC_BOOTSTRAP=1 CLIPPY_CONF_DIR=$linux bash -c "$command \"\$@\"" - -Dwarnings "$@")
}

# Makes the crates' pages in build/doc/rust: the public items of the kernel crate, and
# all items of io_uring_rs, which has no public interface.
make_rustdoc() {
	local output=$build/doc/rust status=0
	local options=(-Zunstable-options --generate-link-to-definition --output "$output"
		-Cunsafe-allow-abi-mismatch=fixed-x18) # rustdoc forgets target modifiers (rust/Makefile)
	rm -rf "$output"
	rust_again rustdoc rust/kernel.o "${options[@]}" || status=1
	rust_again rustdoc io_uring_rs/io_uring_rs.o "${options[@]}" --document-private-items || status=1
	source_links || status=1
	[ ! -d "$output" ] || find "$output" -name '*.html' -exec sed -i "s:href=\"srctree/:href=\"$linux/:g" {} +
	return "$status"
}

# Fails if a srctree/ link of ours leads nowhere.
source_links() {
	local file line path status=0
	while IFS=: read -r file line path; do
		[ -e "$linux/${path#srctree/}" ] || { echo "error: $file:$line: there is no ${path#srctree/} in the kernel tree"; status=1; }
	done < <(cd "$top" && grep -rnoE --include='*.rs' 'srctree/[^])>" ]+' rust io_uring_rs)
	return "$status"
}

# Makes Documentation/io_uring_rs with the kernel's Sphinx in build/doc/sphinx, from
# scratch each time, because Sphinx does not repeat the warnings about files that it has
# processed before.
make_sphinx() {
	local warnings=$build/doc/sphinx.warnings
	rm -rf "$build/doc/sphinx"
	make -C "$linux" O="$build/doc/sphinx" SPHINXDIRS=io_uring_rs SPHINXOPTS="--warning-file=$warnings" htmldocs || return
	# The kernel's configuration wants graphviz for graphs, of which we have none.
	! grep -v '^WARNING: dot(1) not found' "$warnings"
}
