// SPDX-License-Identifier: GPL-2.0
//! Random sequences of fork, exec, registration and ring creation, each result and
//! verdict of which is compared with the model in `state`.

use std::os::unix::process::CommandExt;

use anyhow::{Context, ensure};
use fastrand::Rng;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::ownership::vfork_probe;
use super::restrictions::bare_register;
use super::state::{OPCODES, Object, RingState};
use super::{NOTE, Outcome, Test, TestResult, is_long, seed, tests};
use crate::bpf::{self, USER_DATA_LO};
use crate::kernel::{self, describe, expect_result};
use crate::register::{
    self, DENY_REST, IORING_REGISTER_EVENTFD, IORING_REGISTER_FILES, Restriction, TASK,
};
use crate::ring::{IORING_SETUP_R_DISABLED, IORING_SETUP_SQPOLL, Ring, enter};
use crate::sandbox;
use crate::sqe::{IOSQE_ASYNC, IOSQE_IO_HARDLINK, IOSQE_IO_LINK, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::random" {
        ST20 sequences_agree_with_the_model (60 s);
    }
};

/// The number of values of `user_data` that requests and filters use.
const USER_DATA: u32 = 6;
/// The depth to which processes and threads nest.
const DEPTH: u32 = 3;
/// The most rings that a task has at a time.
const RINGS: usize = 4;

/// Checks that random sequences of fork, exec, registrations and requests give the
/// results of a model.
fn sequences_agree_with_the_model() -> TestResult {
    let seed = seed();
    println!("{NOTE}seed {seed}");
    let (families, steps) = match (kernel::is_debug(), is_long()) {
        (true, _) => (4, 60),
        (false, false) => (15, 80),
        (false, true) => (30, 80),
    };
    let mut rng = Rng::with_seed(seed);
    for family in 0..families {
        let rng = rng.fork();
        sandbox::in_child(|| Actor::new(rng).live(steps))
            .with_context(|| format!("family {family} of seed {seed}"))?;
    }
    Ok(Outcome::Passed)
}

/// A task that acts at random and knows the result that each action must have.
struct Actor {
    rng: Rng,
    depth: u32,
    object: Option<Object>,
    rings: Vec<(Ring, RingState)>,
    children: Vec<Pid>,
    /// The actions so far, for the error message.
    trail: Vec<String>,
}

impl Actor {
    fn new(rng: Rng) -> Self {
        Actor {
            rng,
            depth: 0,
            object: None,
            rings: Vec::new(),
            children: Vec::new(),
            trail: Vec::new(),
        }
    }

    /// Returns the state of a new child or thread of this task.
    fn offspring(&mut self) -> Self {
        Actor {
            depth: self.depth + 1,
            object: self.object.clone(),
            trail: self.trail.clone(),
            ..Actor::new(self.rng.fork())
        }
    }

    fn live(mut self, steps: u32) -> anyhow::Result<()> {
        for _ in 0..steps {
            let step = self.step();
            step.with_context(|| format!("after {}", self.trail.join("; ")))?;
        }
        self.join_children()
    }

    fn join_children(&mut self) -> anyhow::Result<()> {
        self.children.drain(..).try_for_each(sandbox::join)
    }

    fn note(&mut self, step: impl Into<String>) {
        self.trail.push(step.into());
    }

    fn step(&mut self) -> anyhow::Result<()> {
        match self.rng.u32(..100) {
            0..15 => self.filter_task(),
            15..19 => self.restrict_task(),
            19..34 => self.make_ring(),
            34..46 => self.filter_ring(),
            46..52 => self.restrict_ring(),
            52..60 => self.enable_ring(),
            60..66 => self.register_bare(),
            66..92 => self.submit(),
            92..95 => self.fork_child(),
            95..97 => self.start_thread(),
            97..98 => self.lend_ring(),
            _ => self.probe(),
        }
    }

    /// Chooses a filter's opcode, the `user_data` that it denies, and its flags.
    fn choose_filter(&mut self) -> (u8, u32, u32) {
        let opcode = *self.rng.choice(&OPCODES).expect("not empty");
        let deny_rest = self.rng.u32(..12) == 0;
        let flags = if deny_rest { DENY_REST } else { 0 };
        (opcode, self.rng.u32(..USER_DATA), flags)
    }

    /// Chooses the entries of a list of restrictions. Most lists allow most of what the
    /// sequences need.
    fn choose_list(&mut self) -> Vec<Restriction> {
        let rng = &mut self.rng;
        let mut list: Vec<Restriction> = Vec::new();
        if rng.u32(..3) != 0 {
            let kept = OPCODES.iter().filter(|_| rng.u32(..4) != 0);
            list.extend(kept.map(|&opcode| Restriction::sqe_op(opcode)));
            let flags = [0, IOSQE_ASYNC, IOSQE_IO_LINK, 0x7f];
            list.push(Restriction::flags_allowed(
                *rng.choice(&flags).expect("some"),
            ));
            if rng.u32(..4) == 0 {
                list.push(Restriction::flags_required(IOSQE_ASYNC));
            }
        }
        if rng.u32(..3) == 0 {
            let kept = (0..kernel::IORING_REGISTER_LAST).filter(|_| rng.u32(..5) != 0);
            list.extend(kept.map(Restriction::register_op));
        }
        if rng.u32(..8) == 0 {
            list.push(Restriction::sqe_op(65));
        }
        rng.shuffle(&mut list);
        list
    }

    fn filter_task(&mut self) -> anyhow::Result<()> {
        let (opcode, user_data, flags) = self.choose_filter();
        self.note(format!("task filter {opcode}/{user_data}/{flags}"));
        let object = self.object.as_ref();
        let want = object.map_or(0, Object::may_filter);
        let program = bpf::deny_if(USER_DATA_LO, user_data);
        let got = register::filter_with(TASK, opcode, &program, flags);
        expect_result("task filter", got, want)?;
        if want == 0 {
            let object = self.object.get_or_insert_default();
            object.filters.add(opcode, user_data, flags == DENY_REST);
        }
        Ok(())
    }

    fn restrict_task(&mut self) -> anyhow::Result<()> {
        let list = self.choose_list();
        self.note(format!("task list of {}", list.len()));
        let (want, object) = Object::restrict(self.object.as_ref(), &list);
        expect_result("task list", register::restrict_task(&list), want)?;
        if let Some(object) = object {
            self.object = Some(object);
        }
        Ok(())
    }

    fn make_ring(&mut self) -> anyhow::Result<()> {
        let mut flags = 0;
        if self.rng.bool() {
            flags |= IORING_SETUP_R_DISABLED;
        }
        if self.rng.u32(..10) == 0 {
            flags |= IORING_SETUP_SQPOLL;
        }
        self.note(format!("ring {flags:#x}"));
        if self.rings.len() == RINGS {
            let gone = self.rng.usize(..RINGS);
            self.rings.swap_remove(gone);
        }
        let disabled = flags & IORING_SETUP_R_DISABLED != 0;
        let state = RingState::new(self.object.as_ref(), disabled);
        self.rings.push((Ring::with(4, flags)?, state));
        Ok(())
    }

    /// Chooses one of the task's rings, if it has any.
    fn choose_ring(&mut self) -> Option<usize> {
        (!self.rings.is_empty()).then(|| self.rng.usize(..self.rings.len()))
    }

    fn filter_ring(&mut self) -> anyhow::Result<()> {
        let (opcode, user_data, flags) = self.choose_filter();
        let Some(at) = self.choose_ring() else {
            return Ok(());
        };
        self.note(format!("filter of ring {at} {opcode}/{user_data}/{flags}"));
        let (ring, state) = &mut self.rings[at];
        let want = state.register(register::IORING_REGISTER_BPF_FILTER);
        let program = bpf::deny_if(USER_DATA_LO, user_data);
        let got = register::filter_with(ring.fd(), opcode, &program, flags);
        expect_result("ring filter", got, want)?;
        if want == 0 {
            let filters = &mut state.object.filters;
            filters.add(opcode, user_data, flags == DENY_REST);
        }
        Ok(())
    }

    fn restrict_ring(&mut self) -> anyhow::Result<()> {
        let list = self.choose_list();
        let Some(at) = self.choose_ring() else {
            return Ok(());
        };
        self.note(format!("list of {} for ring {at}", list.len()));
        let (ring, state) = &mut self.rings[at];
        let want = state.restrict(&list);
        expect_result("ring list", register::restrict_ring(ring.fd(), &list), want)
    }

    fn enable_ring(&mut self) -> anyhow::Result<()> {
        let Some(at) = self.choose_ring() else {
            return Ok(());
        };
        self.note(format!("enable ring {at}"));
        let (ring, state) = &mut self.rings[at];
        let want = state.enable();
        expect_result("enabling", register::enable(ring.fd()), want)
    }

    fn register_bare(&mut self) -> anyhow::Result<()> {
        let Some(at) = self.choose_ring() else {
            return Ok(());
        };
        let (opcode, otherwise) = if self.rng.bool() {
            (IORING_REGISTER_FILES, -libc::EFAULT)
        } else {
            (IORING_REGISTER_EVENTFD, -libc::EINVAL)
        };
        self.note(format!("register {opcode} on ring {at}"));
        let (ring, state) = &mut self.rings[at];
        let want = match state.register(opcode) {
            0 => otherwise,
            denied => denied,
        };
        expect_result("registering", bare_register(ring.fd(), opcode), want)
    }

    fn choose_sqe(&mut self) -> Sqe {
        let opcode = *self.rng.choice(&OPCODES).expect("not empty");
        let flags = [0, 0, 0, IOSQE_ASYNC, IOSQE_IO_LINK, IOSQE_IO_HARDLINK];
        Sqe::new(opcode)
            .flags(*self.rng.choice(&flags).expect("not empty"))
            .user_data(self.rng.u32(..USER_DATA).into())
    }

    fn submit(&mut self) -> anyhow::Result<()> {
        let sqe = self.choose_sqe();
        let Some(at) = self.choose_ring() else {
            return Ok(());
        };
        let Sqe {
            opcode,
            flags,
            user_data,
            ..
        } = sqe;
        self.note(format!(
            "submit {opcode}/{flags:#x}/{user_data} to ring {at}"
        ));
        let (ring, state) = &mut self.rings[at];
        submit_to(ring, state, sqe)
    }

    /// Forks a child, and either waits for its end or lets it run on.
    fn fork_child(&mut self) -> anyhow::Result<()> {
        if self.depth == DEPTH {
            return Ok(());
        }
        self.note("fork");
        if self.children.len() == 3 {
            self.join_children()?;
        }
        let steps = self.rng.u32(5..30);
        let child = self.offspring();
        let child = sandbox::spawn(|| child.live(steps))?;
        if self.rng.bool() {
            return sandbox::join(child);
        }
        self.children.push(child);
        Ok(())
    }

    /// Starts a thread that acts at the same time as this task.
    fn start_thread(&mut self) -> anyhow::Result<()> {
        if self.depth == DEPTH {
            return Ok(());
        }
        self.note("thread");
        let steps = self.rng.u32(5..20);
        let mut thread = self.offspring();
        // The thread does not fork, as forks from two threads at a time are for ST01.
        thread.depth = DEPTH;
        let thread = std::thread::spawn(move || thread.live(steps));
        for _ in 0..steps / 2 {
            match self.rng.u32(..3) {
                0 => self.filter_task()?,
                1 => self.make_ring()?,
                _ => self.submit()?,
            }
        }
        thread.join().expect("the thread does not panic")
    }

    /// Lets a child, which has a filter of its own, use a ring of this task. The ring
    /// must ignore that filter.
    fn lend_ring(&mut self) -> anyhow::Result<()> {
        let sqe = self.choose_sqe();
        let Some(at) = self.choose_ring() else {
            return Ok(());
        };
        self.note(format!("lend ring {at}"));
        let program = bpf::deny();
        let may_filter = self.object.as_ref().map_or(0, Object::may_filter);
        let (ring, state) = &mut self.rings[at];
        if ring.params()[2] & IORING_SETUP_SQPOLL != 0 {
            return Ok(());
        }
        sandbox::in_child(|| {
            let got = register::filter(TASK, sqe.opcode, &program);
            expect_result("the child's filter", got, may_filter)?;
            submit_to(ring, state, sqe)
        })
    }

    /// Checks the result of a NOP in a program that was started by exec.
    fn probe(&mut self) -> anyhow::Result<()> {
        self.note("exec");
        let want = match RingState::new(self.object.as_ref(), false).verdict(Sqe::nop()) {
            true => 0,
            false => -libc::EACCES,
        };
        let got = match self.rng.u32(..3) {
            0 => sandbox::probe_result(sandbox::nop_probe().status()?)?,
            1 => vfork_probe()?,
            _ => {
                let child = sandbox::spawn(|| Err(sandbox::nop_probe().exec()).context("exec"))?;
                match waitpid(child, None)? {
                    WaitStatus::Exited(_, code) => -code,
                    status => anyhow::bail!("{status:?}"),
                }
            }
        };
        expect_result("NOP after exec", got, want)
    }
}

/// Submits a request that fails by itself unless it is denied first, and compares the
/// result with the model.
fn submit_to(ring: &mut Ring, state: &RingState, sqe: Sqe) -> anyhow::Result<()> {
    if state.disabled {
        let got = enter(ring.fd(), 1, 0, 0);
        return expect_result("entering a disabled ring", got, -libc::EBADFD);
    }
    let want = if !state.verdict(sqe) {
        -libc::EACCES
    } else if sqe.opcode == op::NOP {
        0
    } else {
        -libc::EBADF
    };
    let got = ring.run(sqe)?;
    ensure!(
        got == want,
        "request: got {}, expected {}, {state:?}",
        describe(got),
        describe(want)
    );
    Ok(())
}
