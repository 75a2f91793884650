// SPDX-License-Identifier: GPL-2.0
//! Runs the checks of the host's property tests, for filters and refill queues, on
//! input from libFuzzer: see `judge` in each. `make fuzz` builds this with the
//! instrumentation that shows libFuzzer which code it has reached.

#![no_main]

use io_uring_rs_pure::{classic, refill};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    classic::judge::judge(data);
    refill::judge(data);
});
