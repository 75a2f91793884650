// SPDX-License-Identifier: GPL-2.0
//! Children, threads, other programs, privileges and signals.

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};

use super::machine::{Machine, Mode};
use super::op::Op;
use super::queues::Queue;
use crate::sandbox;

/// The depth to which children and threads nest.
const DEPTH: u32 = 3;
/// The most operations that a child or a thread runs.
const MOST: usize = 12;

impl Machine<'_> {
    /// Runs the next operations in a child. Waits for it where results are compared.
    /// Returns the number of operations.
    pub fn fork(&mut self, first: usize, count: u8, ops: &[Op]) -> usize {
        let count = ops.len().min(1 + usize::from(count) % MOST);
        if self.depth == DEPTH {
            return 0;
        }
        let body = || {
            self.depth += 1;
            self.run(first, &ops[..count]);
            Ok(())
        };
        match sandbox::spawn(body) {
            Ok(child) if self.mode == Mode::Compare => match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => {}
                Ok(WaitStatus::Signaled(_, signal, _)) => self.log.say(signal.as_str()),
                other => self.log.say(&format!("{other:?}")),
            },
            Ok(_) => {}
            Err(error) => self.log.say(&format!("{error:#}")),
        }
        count
    }

    /// Runs the next operations on a new thread, which has rings of its own and shares
    /// all else. Waits for it where results are compared. Returns the number of
    /// operations.
    pub fn thread(&mut self, first: usize, count: u8, ops: &[Op]) -> usize {
        let count = ops.len().min(1 + usize::from(count) % MOST);
        if self.depth == DEPTH {
            return 0;
        }
        let mut thread = Machine {
            mode: self.mode,
            log: self.log,
            device: self.device,
            memory: self.memory.clone(),
            rings: Default::default(),
            queues: self.queues.iter().map(Queue::shared).collect(),
            files: self.files.clone(),
            connections: Vec::new(),
            receives: Default::default(),
            requests: self.requests + 1000,
            on_device: self.on_device,
            depth: DEPTH,
        };
        let ops = &ops[..count];
        std::thread::scope(|scope| {
            scope.spawn(|| thread.run(first, ops));
            if self.mode == Mode::Race {
                // This task goes on with what it has, over and over.
                self.repeat(first, ops);
            }
        });
        count
    }

    /// Runs operations that a thread runs at the same time, but those that wait.
    fn repeat(&mut self, first: usize, ops: &[Op]) {
        let depth = std::mem::replace(&mut self.depth, DEPTH);
        self.run(first, ops);
        self.depth = depth;
    }

    /// Makes a NOP in a program that is started by exec.
    pub fn exec(&mut self) {
        match sandbox::nop_probe().status() {
            Ok(status) => self.log.say(&format!("{:?}", status.code())),
            Err(error) => self.log.say(&format!("{error:#}")),
        }
    }

    pub fn give_up_privileges(&mut self, kind: u8) {
        let got = match kind % 4 {
            0 => sandbox::no_new_privs(),
            1 => sandbox::drop_privileges(),
            2 => sandbox::user_namespace(),
            _ => sandbox::count_locked_memory(),
        };
        match got {
            Ok(()) => self.log.say("done"),
            Err(error) => self.log.say(&format!("{error:#}")),
        }
    }

    /// Ends the process in one of several ways, or interrupts it.
    pub fn signal(&mut self, kind: u8) {
        let signal = match kind % 8 {
            0 => Signal::SIGKILL,
            1 => Signal::SIGTERM,
            _ => Signal::SIGUSR1,
        };
        let got = nix::sys::signal::raise(signal);
        self.log.say(&format!("{got:?}"));
    }
}
