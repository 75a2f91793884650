// SPDX-License-Identifier: GPL-2.0
//! The special numbers that a byte of an operation stands for, and the memory that such
//! numbers point to.

use crate::register::PAGE_SIZE;
use crate::sqe::OpenHow;
use crate::wide::Mapping;
use crate::zcrx::memory;

/// The number of pages of memory for areas, refill queues and rings.
pub const PAGES: usize = 64;
/// The number of blocks of prepared structures, and the size of each in bytes.
const BLOCKS: usize = 32;
const BLOCK: usize = 256;
/// The block at which structures for `io_uring_register(2)` begin, and the number of
/// bytes there.
pub const STRUCTURES: usize = BLOCKS * BLOCK;
pub const STRUCTURES_LEN: usize = 8192;
/// The block that holds a time that never comes.
const NEVER: usize = 7;

/// The memory that operations point the kernel to.
pub struct Memory {
    /// Prepared structures, and the structures of registrations.
    pub blocks: Mapping,
    /// The memory of areas.
    pub areas: Mapping,
}

impl Memory {
    pub fn new() -> anyhow::Result<Self> {
        let blocks = memory((STRUCTURES + STRUCTURES_LEN) / PAGE_SIZE)?;
        let memory = Memory {
            blocks,
            areas: memory(PAGES)?,
        };
        memory.prepare();
        Ok(memory)
    }

    /// Returns the address of a block.
    pub fn block(&self, number: usize) -> u64 {
        self.blocks.address() as u64 + (BLOCK * (number % BLOCKS)) as u64
    }

    /// Returns the address of a page for areas.
    pub fn page(&self, number: usize) -> u64 {
        self.areas.address() as u64 + (PAGE_SIZE * (number % PAGES)) as u64
    }

    /// Returns the address of a time that never comes.
    pub fn never(&self) -> u64 {
        self.block(NEVER)
    }

    /// Writes the structures that most system calls take: a request that points to a
    /// random block sometimes finds what it needs.
    fn prepare(&self) {
        let put = |block: usize, at: usize, bytes: &[u8]| {
            for (index, byte) in bytes.iter().enumerate() {
                self.blocks.write(BLOCK * block + at + index, *byte);
            }
        };
        let words = |block: usize, words: &[u64]| {
            for (index, word) in words.iter().enumerate() {
                put(block, 8 * index, &word.to_ne_bytes());
            }
        };
        put(1, 0, b"name\0");
        put(2, 0, b"other\0");
        // A vector of buffers, and a message with it.
        words(3, &[self.block(16), 100, self.block(17), 200]);
        words(4, &[0, 0, self.block(3), 2]);
        // Addresses of sockets.
        put(5, 0, &[2, 0, 0x23, 0x28, 127, 0, 0, 1]);
        put(6, 0, b"\x01\0\0abstract");
        words(NEVER, &[1 << 20, 0]);
        let how = OpenHow {
            flags: libc::O_RDWR as u64,
            ..Default::default()
        };
        words(8, &[how.flags, how.mode, how.resolve]);
        words(9, &[u64::from(libc::EPOLLIN as u32), 0]);
        put(10, 0, b"user.name\0");
        // File descriptors, and a vector of futexes.
        words(11, &[0xffff_ffff_0000_0003, 0x0000_0005_0000_0004]);
        words(12, &[0, self.block(13), 2, 0, self.block(14), 2]);
        for block in 16..BLOCKS {
            put(block, 0, &[block as u8; BLOCK]);
        }
    }

    /// Returns the special number that a byte stands for: a small number, a power of two,
    /// an address, a file descriptor of `files`, or an address that is nothing's.
    pub fn number(&self, byte: u8, files: &[i32]) -> u64 {
        let at = u64::from(byte);
        match byte {
            0..64 => at,
            64..128 => 1 << (at - 64),
            128..144 => (at - 128).wrapping_neg(),
            144..160 => (1u64 << (4 * (at - 144) + 3)).wrapping_sub(1),
            160..192 => self.block(usize::from(byte) - 160),
            192..224 => self.page(2 * (usize::from(byte) - 192)),
            224..232 => self.page(0) + (1 << (at - 224)),
            232..236 => [
                u64::MAX,
                0xffff_8880_0000_0000,
                1 << 63 | 0x1000,
                self.page(0) - PAGE_SIZE as u64,
            ][usize::from(byte) - 232],
            236.. => {
                let number = usize::from(byte) - 236;
                files
                    .get(number % files.len().max(1))
                    .map_or(u64::MAX, |fd| *fd as u64)
            }
        }
    }
}
