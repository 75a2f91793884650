// SPDX-License-Identifier: GPL-2.0
//! KCOV: the places of the kernel that a task reaches in its system calls.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, ensure};

use crate::wide::Mapping;

/// The number of places that are recorded of one program, in words.
const WORDS: usize = 1 << 18;
/// The number of bits of [`Reached`].
const BITS: usize = 1 << 20;

const KCOV_INIT_TRACE: u64 = 0x8008_6301;
const KCOV_ENABLE: u64 = 0x6364;
const KCOV_TRACE_PC: u64 = 0;

/// A record of one task's way through the kernel.
pub struct Kcov {
    file: File,
    words: Mapping,
}

impl Kcov {
    /// Opens the record, if this kernel has KCOV.
    pub fn open() -> anyhow::Result<Option<Self>> {
        let path = "/sys/kernel/debug/kcov";
        if !std::path::Path::new(path).exists() {
            return Ok(None);
        }
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(path)
            .context(path)?;
        // SAFETY: the call takes a number.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), KCOV_INIT_TRACE as _, WORDS) };
        ensure!(made == 0, "KCOV: {}", std::io::Error::last_os_error());
        let words = Mapping::new(file.as_raw_fd(), 0, 8 * WORDS)?;
        Ok(Some(Kcov { file, words }))
    }

    /// Begins to record the calling thread, until it ends.
    pub fn start(&self) -> anyhow::Result<()> {
        self.words.write(0, 0u64);
        // SAFETY: the call takes a number.
        let got = unsafe { libc::ioctl(self.file.as_raw_fd(), KCOV_ENABLE as _, KCOV_TRACE_PC) };
        ensure!(got == 0, "KCOV: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Adds what was recorded to `reached`. Returns whether any of it is new.
    pub fn collect(&self, reached: &mut Reached) -> bool {
        let count = self.words.read::<u64>(0).min(WORDS as u64 - 1) as usize;
        let mut before = 0;
        let mut is_new = false;
        for word in 1..=count {
            let place = self.words.read::<u64>(8 * word);
            // A step from one place to the next says more than the place.
            let step = (place ^ before).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            before = place.rotate_left(7);
            is_new |= reached.add((step >> 40) as usize % BITS);
        }
        is_new
    }
}

/// The steps that were ever taken, as bits.
pub struct Reached {
    bits: Vec<u64>,
    /// The number of bits that are set.
    pub count: usize,
}

impl Reached {
    pub fn new() -> Self {
        Reached {
            bits: vec![0; BITS / 64],
            count: 0,
        }
    }

    /// Sets a bit. Returns whether it was not set before.
    fn add(&mut self, bit: usize) -> bool {
        let word = &mut self.bits[bit / 64];
        let is_new = *word & 1 << (bit % 64) == 0;
        *word |= 1 << (bit % 64);
        self.count += usize::from(is_new);
        is_new
    }
}
