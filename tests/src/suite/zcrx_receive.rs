// SPDX-License-Identifier: GPL-2.0
//! D9: receiving into an interface queue without a device.

use super::{Outcome, Test, TestResult, test};
use crate::register::PAGE_SIZE;
use crate::wide::WideRing;
use crate::zcrx::{Ifq, transfer};

pub const TESTS: &[Test] = &[test("ZV05 a page, compared", zv05)];

fn zv05() -> TestResult {
    let mut ring = WideRing::new(8)?;
    let mut ifq = Ifq::new(ring.fd(), 64, 16)?;
    transfer(&mut ring, &mut ifq, PAGE_SIZE)?;
    Ok(Outcome::Passed)
}
