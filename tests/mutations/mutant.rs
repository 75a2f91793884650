// SPDX-License-Identifier: GPL-2.0

//! The number of the mutation that this boot runs.

use crate::{
    bindings,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use core::ffi::CStr;

const UNKNOWN: u32 = u32::MAX;

static NUMBER: Atomic<u32> = Atomic::new(UNKNOWN);

/// Returns the number on the kernel's command line, or zero.
#[inline]
pub fn number() -> u32 {
    match NUMBER.load(Relaxed) {
        UNKNOWN => find(),
        number => number,
    }
}

#[cold]
fn find() -> u32 {
    // SAFETY: The command line was copied before any of this code runs, and never changes.
    let line = unsafe { CStr::from_ptr(bindings::saved_command_line.cast()) }.to_bytes();
    let name = b"mutant.number=";
    let number = line
        .windows(name.len())
        .position(|window| window == name)
        .map_or(0, |start| {
            line[start + name.len()..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))
        });

    NUMBER.store(number, Relaxed);
    number
}
