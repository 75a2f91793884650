// SPDX-License-Identifier: GPL-2.0
//! A fuzzer of io_uring: programs of small operations (`op`), made at random or from other
//! programs (`mutate`), that an interpreter (`machine`) runs in a child of `runner`. What
//! an operation returned is recorded. `compare` says where the records of two kernels
//! differ, and whether that is a known deviation; `kcov` says which code a program
//! reached.

pub mod compare;
mod device;
mod kcov;
pub mod machine;
pub mod mutate;
pub mod op;
mod queues;
mod registrations;
mod requests;
pub mod runner;
mod tasks;
mod values;
