// SPDX-License-Identifier: GPL-2.0
//! Gives libFuzzer what the host's tests also have, of filters and of refill
//! queues: `judge`. `make fuzz` builds this with the instrumentation that shows
//! libFuzzer where it has been.

#![no_main]

use io_uring_rs_pure::{classic, refill};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    classic::judge::judge(data);
    refill::judge(data);
});
