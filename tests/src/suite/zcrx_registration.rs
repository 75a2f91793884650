// SPDX-License-Identifier: GPL-2.0
//! PLACEHOLDER

use super::Test;

pub const TESTS: &[Test] = &[];
