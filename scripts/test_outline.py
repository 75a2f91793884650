#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of outline.py."""

import unittest

from outline import declared, outline, unused

ROOT = """\
// SPDX-License-Identifier: GPL-2.0

//! A crate.

#![deny(unsafe_code)]

// What C calls.
#[cfg(CONFIG_A)]
#[path = "deep/exports.rs"]
pub mod exports;
#[cfg(all(
    CONFIG_A,
    CONFIG_B
))]
pub(crate) mod late;
mod soon;

use soon::Soon;

#[cfg(test)]
mod tests {
    mod inner;
}
"""


class Declared(unittest.TestCase):
    def test_keeps_file_whose_modules_exist(self):
        there = {"x/deep/exports.rs", "x/late.rs", "x/soon.rs"}
        self.assertEqual(declared("x/lib.rs", ROOT, there.__contains__), ROOT)

    def test_drops_missing_module_with_attributes(self):
        there = {"x/deep/exports.rs", "x/soon.rs"}
        text = declared("x/lib.rs", ROOT, there.__contains__)
        self.assertNotIn("late", text)
        self.assertNotIn("CONFIG_B", text)
        self.assertIn("pub mod exports;\nmod soon;\n\nuse", text)

    def test_leaves_no_two_empty_lines(self):
        text = declared("x/lib.rs", ROOT, lambda file: False)
        self.assertNotIn("\n\n\n", text)
        self.assertNotIn("What C calls", text)
        self.assertIn("    mod inner;\n", text)

    def test_looks_for_modules_in_folder_of_file(self):
        there = {"x/a/soon.rs", "x/a/late/mod.rs"}
        text = declared("x/a.rs", ROOT, there.__contains__)
        self.assertIn("mod soon;\n", text)
        self.assertIn("mod late;\n", text)
        self.assertNotIn("mod exports;\n", text)


class Outline(unittest.TestCase):
    def test_has_header_attributes_and_modules(self):
        self.assertEqual(
            outline("x/lib.rs", ROOT, {"x/soon.rs"}.__contains__),
            """\
// SPDX-License-Identifier: GPL-2.0

//! A crate.

#![deny(unsafe_code)]
// Nothing uses these modules before this file is complete.
#![allow(dead_code)]

mod soon;
""",
        )

    def test_without_attributes_and_modules(self):
        self.assertEqual(
            outline("a.rs", "// SPDX\n\n//! Doc.\n\n// About f.\nfn f() {}\n", lambda file: False),
            """\
// SPDX

//! Doc.

// Nothing uses these modules before this file is complete.
#![allow(dead_code)]
""",
        )


class Unused(unittest.TestCase):
    def test_allows_dead_code_after_header(self):
        self.assertEqual(
            unused("a.rs", "// SPDX\n\n//! Doc.\n\n// About f.\nfn f() {}\n", lambda file: False),
            """\
// SPDX

//! Doc.

// Later patches use the rest of this file.
#![allow(dead_code)]

// About f.
fn f() {}
""",
        )

    def test_allows_dead_code_after_attributes(self):
        there = {"x/deep/exports.rs", "x/late.rs", "x/soon.rs"}
        self.assertEqual(
            unused("x/lib.rs", ROOT, there.__contains__),
            ROOT.replace(
                "(unsafe_code)]\n",
                "(unsafe_code)]\n// Later patches use the rest of this file.\n#![allow(dead_code)]\n",
            ),
        )


if __name__ == "__main__":
    unittest.main()
