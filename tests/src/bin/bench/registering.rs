// SPDX-License-Identifier: GPL-2.0
//! Registering filters: the nanoseconds that a registration takes, and the memory that
//! is charged for filters.

use std::io::{Read, Write};

use io_uring_rs_tests::bpf::{self, Program};
use io_uring_rs_tests::kernel::expect_result;
use io_uring_rs_tests::register::{self, TASK};
use io_uring_rs_tests::ring::Ring;
use io_uring_rs_tests::sandbox::{self, MemoryGroup};
use io_uring_rs_tests::sqe::{IOSQE_BUFFER_SELECT, IOSQE_FIXED_FILE, Sqe, op};

use super::{
    CHILDREN, DENIED, ENTRIES, RINGS, WARM_UP, deny_flags, deny_value, expect_filtered, median,
    timed,
};

/// The number of opcodes of a policy.
const OPCODES: u8 = 40;
/// The number of rings or tasks whose memory is measured together. What is charged is
/// known to some pages.
const MANY: usize = 400;

/// Measures registering `last` on new rings that have `before` already.
fn one(before: &[Program], last: &Program) -> anyhow::Result<f64> {
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + RINGS {
        let mut ring = Ring::with(ENTRIES, 0)?;
        for program in before {
            ring.must_filter(op::NOP, program)?;
        }
        let mut result = 0;
        samples.push(timed(|| result = ring.filter(op::NOP, last))?);
        expect_result("registering", result, 0)?;
        expect_filtered(&mut ring)?;
    }
    Ok(median(samples.split_off(WARM_UP)))
}

/// Measures the first filter of a ring.
pub fn first() -> anyhow::Result<f64> {
    one(&[], &deny_value(DENIED))
}

/// Measures one more filter for an opcode that has fifteen.
pub fn onto_fifteen() -> anyhow::Result<f64> {
    one(&vec![deny_value(DENIED); 15], &deny_value(DENIED))
}

/// Measures sixteen filters for an opcode and the first request that runs them, which
/// makes one program of them in Rust.
pub fn sixteen_and_a_request() -> anyhow::Result<f64> {
    let program = deny_value(DENIED);
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + RINGS {
        let mut ring = Ring::with(ENTRIES, 0)?;
        let mut failed = 0;
        let mut completion = Ok(0);
        samples.push(timed(|| {
            for _ in 0..16 {
                failed = failed.min(ring.filter(op::NOP, &program));
            }
            completion = ring.run(Sqe::nop());
        })?);
        expect_result("registering", failed, 0)?;
        expect_result("the request", completion?, 0)?;
        expect_filtered(&mut ring)?;
    }
    Ok(median(samples.split_off(WARM_UP)))
}

/// Measures a filter of as many instructions as there may be.
pub fn longest() -> anyhow::Result<f64> {
    let program = bpf::long(4096, 1);
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + RINGS {
        let ring = Ring::with(ENTRIES, 0)?;
        let mut result = 0;
        samples.push(timed(|| result = ring.filter(op::NOP, &program))?);
        expect_result("registering", result, 0)?;
    }
    Ok(median(samples.split_off(WARM_UP)))
}

/// Measures a policy of one filter for each of [`OPCODES`] opcodes, per filter.
fn policy(program: &Program) -> anyhow::Result<f64> {
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + RINGS {
        let ring = Ring::with(ENTRIES, 0)?;
        let mut failed = 0;
        samples.push(timed(|| {
            for opcode in 0..OPCODES {
                failed = failed.min(ring.filter(opcode, program));
            }
        })?);
        expect_result("registering", failed, 0)?;
    }
    Ok(median(samples.split_off(WARM_UP)) / f64::from(OPCODES))
}

/// Measures a policy that allows its opcodes.
pub fn allow_list() -> anyhow::Result<f64> {
    policy(&bpf::allow())
}

/// Measures a policy that denies flags of the SQE with each opcode.
pub fn flag_tests() -> anyhow::Result<f64> {
    policy(&deny_flags(IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT))
}

/// Measures the first filter of a task.
pub fn task() -> anyhow::Result<f64> {
    let program = deny_value(DENIED);
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + CHILDREN {
        let (mut from, mut to) = std::io::pipe()?;
        sandbox::in_child(|| {
            let mut result = 0;
            let took = timed(|| result = register::filter(TASK, op::NOP, &program))?;
            expect_result("registering", result, 0)?;
            expect_filtered(&mut Ring::new(1)?)?;
            Ok(to.write_all(&took.to_ne_bytes())?)
        })?;
        let mut took = [0; 8];
        from.read_exact(&mut took)?;
        samples.push(f64::from_ne_bytes(took));
    }
    Ok(median(samples.split_off(WARM_UP)))
}

/// Returns how many bytes more are charged when `make` has been called [`MANY`] times,
/// for each call. What it returns is kept until then.
fn charged<T>(mut make: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    let group = MemoryGroup::new()?;
    group.enter()?;
    let mut kept = Vec::with_capacity(MANY);
    kept.push(make()?);
    let before = group.charged()?;
    for _ in 1..MANY {
        kept.push(make()?);
    }
    let after = group.charged()?;
    Ok((after as f64 - before as f64) / (MANY - 1) as f64)
}

/// Returns the bytes that are charged for a ring that `register` has prepared.
fn bytes_of(register: impl Fn(&mut Ring) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    charged(|| {
        let mut ring = Ring::new(1)?;
        register(&mut ring)?;
        Ok(ring)
    })
}

/// Measures the bytes of a filter, of which a ring has forty for as many opcodes.
pub fn bytes_of_filter() -> anyhow::Result<f64> {
    let with = bytes_of(|ring| {
        (0..OPCODES).try_for_each(|opcode| ring.must_filter(opcode, &deny_value(DENIED)))
    })?;
    Ok((with - bytes_of(|_| Ok(()))?) / f64::from(OPCODES))
}

/// Measures the bytes of a ring whose task has a filter.
pub fn bytes_of_ring() -> anyhow::Result<f64> {
    let result = register::filter(TASK, op::NOP, &deny_value(DENIED));
    expect_result("registering", result, 0)?;
    bytes_of(|_| Ok(()))
}

/// Measures the bytes of a filter that a task registers for itself.
pub fn bytes_of_task() -> anyhow::Result<f64> {
    let child = |filtered: bool| {
        move || {
            let (from, to) = std::io::pipe()?;
            let child = sandbox::spawn(move || {
                if filtered {
                    let result = register::filter(TASK, op::NOP, &deny_value(DENIED));
                    expect_result("registering", result, 0)?;
                }
                drop(to);
                loop {
                    nix::unistd::pause();
                }
            })?;
            // The end of the pipe says that the child has registered its filter.
            std::io::read_to_string(from)?;
            anyhow::Ok(child)
        }
    };
    Ok(charged(child(true))? - charged(child(false))?)
}
