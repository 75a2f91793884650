// SPDX-License-Identifier: GPL-2.0
//! The references and grants of a buffer (`rust/kernel/net/netmem`): user space gives a
//! buffer back while a packet is being received in it, while all buffers are taken
//! back, or while others take free buffers.

// These are formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../rust/kernel/net/netmem/counts.rs"]
mod counts;
#[allow(dead_code)] // `Users::add`
#[rustfmt::skip]
#[path = "../../../io_uring_rs/zcrx/users.rs"]
mod users;

use crate::check::{Order::*, Source, check};
use crate::sync::{Refcount, atomic};
use counts::{FREE, Grants, References};
use loom::{cell::UnsafeCell, sync::Arc, thread};
use std::sync::atomic::{AtomicU32, Ordering};
use users::Users;

const COUNTS: Source = Source("rust/kernel/net/netmem/counts.rs");
const USERS: Source = Source("io_uring_rs/zcrx/users.rs");

/// A buffer, as `Iov` has it.
struct Buffer {
    references: atomic::Atomic<isize>,
    granted: atomic::Atomic<i32>,
    /// Whether the buffer is in a pool. The owner of all references writes this.
    pooled: UnsafeCell<bool>,
    /// The bytes that are received. The owner of a reference reads them. A device writes
    /// them when the buffer is back in its pool.
    bytes: UnsafeCell<u32>,
    /// The number of times that the buffer went back to its pool, or became free.
    returned: AtomicU32,
}

impl Buffer {
    fn new(references: isize, granted: i32, pooled: bool) -> Arc<Self> {
        Arc::new(Self {
            references: atomic::Atomic::new(references),
            granted: atomic::Atomic::new(granted),
            pooled: UnsafeCell::new(pooled),
            bytes: UnsafeCell::new(0),
            returned: AtomicU32::new(0),
        })
    }

    fn references(&self) -> References<'_> {
        References(&self.references)
    }

    fn granted(&self) -> Grants<'_> {
        Grants(&self.granted)
    }

    /// Drops references as `Iov::put` does. A buffer that goes back to its pool is written to by a
    /// device at once.
    fn put(&self, count: i32) {
        if !self.references().remove(count) {
            return;
        }
        self.returned.fetch_add(1, Ordering::Relaxed);
        if self.pooled.with(|pooled| unsafe { *pooled }) {
            self.references().set_pooled();
            self.write();
        } else {
            self.write();
            self.references().set_free();
        }
    }

    fn give_back(&self, count: u32) {
        if let Some(taken) = self.granted().take_back(count) {
            self.put(taken);
        }
    }

    fn scrub(&self) {
        if let Some(taken) = self.granted().take_back_all() {
            self.put(taken);
        }
    }

    fn read(&self) {
        self.bytes.with(|bytes| unsafe { *bytes });
    }

    fn write(&self) {
        self.bytes.with_mut(|bytes| unsafe { *bytes += 1 });
    }

    fn returned(&self) -> u32 {
        self.returned.load(Ordering::Relaxed)
    }
}

/// Runs `f` in a thread of its own.
fn start(buffer: &Arc<Buffer>, f: impl FnOnce(&Buffer) + 'static) -> thread::JoinHandle<()> {
    let buffer = buffer.clone();
    thread::spawn(move || f(&buffer))
}

/// A buffer that user space gives back at once is not reused while a packet has it.
#[test]
fn granted_buffer_is_not_reused_before_its_packet_is_freed() {
    fn model() {
        // A packet has the only reference.
        let buffer = Buffer::new(1, 0, true);
        let receiver = start(&buffer, |buffer| {
            buffer.granted().add_with(buffer.references());
            buffer.read();
            buffer.put(1);
        });
        buffer.give_back(1);
        receiver.join().unwrap();
        buffer.give_back(1);
        assert_eq!(buffer.returned(), 1);
    }

    check(
        model,
        [
            COUNTS.weaken("fn add(self)", "self.0.fetch_add(1, Release);", Relaxed),
            COUNTS.weaken(
                "fn take_back(",
                "match self.0.cmpxchg(old, old.wrapping_sub(taken), Full) {",
                Relaxed,
            ),
            COUNTS.weaken(
                "fn take_back(",
                "match self.0.cmpxchg(old, old.wrapping_sub(taken), Full) {",
                Release,
            ),
            COUNTS.weaken("fn remove(", "self.0.load(Acquire) == count || {", Relaxed),
            COUNTS.weaken(
                "fn remove(",
                "let before = self.0.fetch_sub(count, Full);",
                Acquire,
            ),
            COUNTS.weaken(
                "fn remove(",
                "let before = self.0.fetch_sub(count, Full);",
                Release,
            ),
        ],
    );
}

/// A grant counts once, although one CPU takes back a grant and another one takes back
/// all of them while a third one grants the buffer.
#[test]
fn each_grant_is_taken_back_once() {
    fn model() {
        let buffer = Buffer::new(2, 1, true);
        let receiver = start(&buffer, |buffer| {
            buffer.granted().add_with(buffer.references());
            buffer.read();
            buffer.put(1);
        });
        let user = start(&buffer, |buffer| buffer.give_back(1));
        buffer.scrub();
        receiver.join().unwrap();
        user.join().unwrap();
        buffer.scrub();
        assert_eq!(buffer.returned(), 1);
    }

    check(
        model,
        [
            COUNTS.weaken("fn take_back_all(", "match self.0.xchg(0, Full) {", Relaxed),
            COUNTS.weaken("fn take_back_all(", "match self.0.xchg(0, Full) {", Release),
        ],
    );
}

/// The CPU that takes a free buffer is alone with it.
#[test]
fn free_buffer_is_taken_after_others_are_done_with_it() {
    fn model() {
        // User space has the only reference.
        let buffer = Buffer::new(1, 1, false);
        let taker = start(&buffer, |buffer| {
            if buffer.references().take() {
                buffer.pooled.with_mut(|pooled| unsafe { *pooled = true });
                buffer.write();
            }
        });
        buffer.give_back(1);
        taker.join().unwrap();
    }

    check(
        model,
        [
            COUNTS.weaken("fn set_free(", "self.0.store(FREE, Release);", Relaxed),
            COUNTS.weaken(
                "fn take(",
                "self.0.cmpxchg(FREE, 1, Acquire).is_ok()",
                Relaxed,
            ),
        ],
    );
}

/// A CPU that takes a buffer that its pool has released sees that it is in no pool.
#[test]
fn released_buffer_is_taken_after_it_left_its_pool() {
    fn model() {
        let buffer = Buffer::new(1, 0, true);
        let taker = start(&buffer, |buffer| {
            if buffer.references().take() {
                buffer.pooled.with(|pooled| assert!(unsafe { !*pooled }));
            }
        });
        buffer.pooled.with_mut(|pooled| unsafe { *pooled = false });
        buffer.references().set_free_by_pool();
        taker.join().unwrap();
    }

    check(
        model,
        [
            COUNTS.weaken(
                "fn set_free_by_pool(",
                "self.0.store(FREE, Release);",
                Relaxed,
            ),
            COUNTS.weaken(
                "fn take(",
                "self.0.cmpxchg(FREE, 1, Acquire).is_ok()",
                Relaxed,
            ),
        ],
    );
}

/// When a pool has counted all of its buffers as returned, and the last reference to
/// their owner is dropped, no buffer seems to be held. The pool counts without ordering.
#[test]
fn returned_buffers_are_seen_as_free_when_their_owner_is_dropped() {
    struct Pool {
        references: atomic::Atomic<isize>,
        granted: atomic::Atomic<i32>,
        is_pooled: atomic::Atomic<u32>,
        returned: atomic::Atomic<u32>,
        /// The references to the owner of the buffers.
        owner: Refcount,
    }

    fn model() {
        let pool = Arc::new(Pool {
            references: atomic::Atomic::new(1),
            granted: atomic::Atomic::new(0),
            is_pooled: atomic::Atomic::new(1),
            returned: atomic::Atomic::new(0),
            owner: Refcount::new(1),
        });
        let released = pool.clone();
        let release = thread::spawn(move || {
            released.is_pooled.store(0, atomic::Relaxed);
            References(&released.references).set_free_by_pool();
            released.returned.add(1, atomic::Relaxed);
        });
        if pool.returned.load(atomic::Relaxed) == 1 && pool.owner.dec_and_test() {
            assert_eq!(pool.is_pooled.load(atomic::Relaxed), 0);
            assert!(!References(&pool.references).exceed(Grants(&pool.granted)));
            assert_eq!(pool.references.load(atomic::Relaxed), FREE);
        }
        release.join().unwrap();
    }

    check(
        model,
        [COUNTS.weaken(
            "fn set_free_by_pool(",
            "barrier::smp_mb(barrier::Write);",
            Relaxed,
        )],
    );
}

/// A buffer that a request gets after its ring has ended its use of the queue is taken
/// back: by the last user, or by the ring, which is being freed at the same time.
#[test]
fn late_grant_is_taken_back_by_the_last_user_or_by_the_ring() {
    fn model() {
        // The ring is copying to the buffer, and has the only reference. The user is an
        // exported file.
        let buffer = Buffer::new(1, 0, false);
        let users = Arc::new(Users::one());
        let ring_sees = users.clone();
        let ring = start(&buffer, move |buffer| {
            buffer.granted().add();
            if ring_sees.are_gone() {
                buffer.scrub();
            }
        });
        if users.remove() {
            buffer.scrub();
        }
        ring.join().unwrap();
        assert_eq!(buffer.returned(), 1, "the grant is lost");
    }

    check(
        model,
        [
            USERS.weaken("fn remove", "barrier::smp_mb(Full);", Relaxed),
            USERS.weaken("fn are_gone", "barrier::smp_mb(Full);", Relaxed),
        ],
    );
}
