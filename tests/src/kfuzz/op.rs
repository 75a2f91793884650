// SPDX-License-Identifier: GPL-2.0
//! The operations of fuzzed programs, and their two forms: as a line of text, in which
//! programs are kept and reported, and as a record of bytes, in which they are changed at
//! random. Any bytes are a record of some operation.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};

/// The size of the record of an operation in bytes: its kind and up to eleven fields.
pub const RECORD: usize = 12;

/// An operation as bytes. The first selects the kind, modulo the number of kinds. Bytes
/// after the last field mean nothing.
pub type Record = [u8; RECORD];

/// Defines [`Op`] and both of its forms from one list.
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),* })*) => {
        /// An operation. Each field is a byte; the interpreter reduces it to what makes
        /// sense, so that every value is valid. Fields called `number` stand for one of
        /// the special numbers in `values`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Op {
            $($(#[$doc])* $name { $($field: u8),* },)*
        }

        impl Op {
            /// The names of all kinds, in the order of the first byte of records.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];
            /// The number of fields of each kind.
            pub const FIELDS: &[usize] = &[$({
                let fields: &[&str] = &[$(stringify!($field)),*];
                fields.len()
            }),*];

            /// Decodes a record.
            pub fn from_record(record: &Record) -> Self {
                let kind = Self::NAMES[usize::from(record[0]) % Self::NAMES.len()];
                let mut fields = record[1..].iter().copied();
                let mut field = || fields.next().unwrap_or(0);
                match kind {
                    $(stringify!($name) => Op::$name { $($field: field()),* },)*
                    _ => unreachable!("every kind is in the list"),
                }
            }

            /// Returns the place of the kind in [`Self::NAMES`], and the fields.
            fn parts(&self) -> (usize, Vec<u8>) {
                let (name, fields) = match *self {
                    $(Op::$name { $($field),* } => (stringify!($name), vec![$($field),*]),)*
                };
                let kind = Self::NAMES.iter().position(|other| *other == name);
                (kind.expect("every kind is in the list"), fields)
            }
        }
    };
}

operations! {
    /// Sets up a ring in a slot, in place of the one that is there. `kind` chooses the
    /// setup flags, or takes them from `flags0` to `flags2`.
    Ring { slot, kind, entries, completions, flags0, flags1, flags2 }
    /// Closes the ring of a slot.
    Close { slot }
    /// Enables the ring of a slot.
    Enable { slot }
    /// Registers a filter with the ring of a slot, or with the task if the high bit of
    /// `target` is set. If `bend` names a word of the registration, `number` overwrites it.
    Filter { target, opcode, program, value, flags, bend, number }
    /// Registers a list of restrictions that `seed` chooses, with a ring or with the task.
    Restrict { target, seed, count, bend, number }
    /// Queues a request of any opcode.
    Sqe { slot, opcode, flags, fd, addr, off, len, op_flags, more, number, user_data }
    /// Queues a zero-copy receive from a connection into a queue.
    Recv { slot, queue, connection, len, flags, sqe_flags }
    /// Submits what is queued and takes all completions.
    Enter { slot, count, flags }
    /// Makes an `io_uring_register(2)` call of any opcode.
    Register { slot, opcode, arg, count }
    /// Makes a pair of connected files: sockets, a pipe, an eventfd, a file in memory.
    Files { kind }
    /// Sends bytes over a connection.
    Send { connection, len, pieces }
    /// Closes a file, or shuts down one direction of a connection.
    CloseFile { file, how }
    /// Registers an interface queue with a ring.
    Queue { slot, entries, first, pages, options, bend, number }
    /// Imports an exported queue.
    Import { slot, file, bend, number }
    /// Runs a control operation on a queue: flush, export, arm an event, add an area.
    Control { slot, queue, op, first, pages, bend, number }
    /// Gives back buffers that completions have handed out.
    Return { queue, which, count, noise }
    /// Puts entries into the refill queue that need not be valid.
    Entry { queue, area, index, noise, count }
    /// Overwrites a word of a refill queue: its head, its tail, an entry.
    Header { queue, word, number }
    /// Runs the next `count` operations in a forked child.
    Fork { count }
    /// Runs the next `count` operations on a new thread.
    Thread { count }
    /// Starts a program by exec that makes a NOP.
    Exec {}
    /// Gives up privileges.
    Privileges { kind }
    /// Changes the mapping of the memory that areas are made of.
    Memory { what, first, pages }
    /// Sends a signal to the own process.
    Signal { kind }
    /// Changes the software NIC: knobs, plugs, links, queues.
    Device { what, value }
    /// Starts a thread that overwrites a refill queue for as long as the program runs.
    Scribble { queue, first, seed }
}

impl Op {
    /// Encodes the operation as a record.
    pub fn record(&self) -> Record {
        let (kind, fields) = self.parts();
        let mut record = [0; RECORD];
        record[0] = kind as u8;
        record[1..=fields.len()].copy_from_slice(&fields);
        record
    }

    /// Returns the number of fields.
    pub fn fields(&self) -> usize {
        self.parts().1.len()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, fields) = self.parts();
        f.write_str(Self::NAMES[kind])?;
        fields.iter().try_for_each(|field| write!(f, " {field}"))
    }
}

impl FromStr for Op {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut words = text.split_whitespace();
        let name = words.next().context("an empty operation")?;
        let Some(kind) = Self::NAMES.iter().position(|other| *other == name) else {
            bail!("no operation is called {name}");
        };
        let fields: Vec<u8> = words
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| text.to_string())?;
        ensure!(
            fields.len() == Self::FIELDS[kind],
            "{name} has {} fields: {text}",
            Self::FIELDS[kind]
        );
        let mut record = [0; RECORD];
        record[0] = kind as u8;
        record[1..=fields.len()].copy_from_slice(&fields);
        Ok(Self::from_record(&record))
    }
}

/// A sequence of operations.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Program(pub Vec<Op>);

impl Program {
    /// Decodes records. Bytes that are no whole record are left out.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let (records, _) = bytes.as_chunks();
        Program(records.iter().map(Op::from_record).collect())
    }

    /// Encodes all operations as records.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(Op::record).collect()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations: Vec<String> = self.0.iter().map(Op::to_string).collect();
        f.write_str(&operations.join("; "))
    }
}

impl FromStr for Program {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let operations = text.split(';').filter(|text| !text.trim().is_empty());
        Ok(Program(
            operations.map(Op::from_str).collect::<Result<_, _>>()?,
        ))
    }
}

/// Reads programs, one a line. Empty lines and lines that begin with `#` are comments.
pub fn read_programs(text: &str) -> anyhow::Result<Vec<Program>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.parse().with_context(|| line.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    #[test]
    fn any_bytes_are_a_program_that_text_and_records_keep() {
        let mut rng = Rng::with_seed(1);
        for len in 0..1000 {
            let bytes: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
            let program = Program::from_bytes(&bytes);
            assert_eq!(program.0.len(), len / RECORD);
            assert_eq!(Program::from_bytes(&program.bytes()), program);
            assert_eq!(program.to_string().parse::<Program>().unwrap(), program);
        }
    }

    #[test]
    fn every_kind_has_a_record_of_its_own() {
        for kind in 0..Op::NAMES.len() {
            let mut record = [7; RECORD];
            record[0] = kind as u8;
            let op = Op::from_record(&record);
            assert_eq!(op.record()[0], kind as u8);
            assert_eq!(op.fields(), Op::FIELDS[kind]);
            assert!(op.to_string().starts_with(Op::NAMES[kind]));
        }
    }

    #[test]
    fn text_that_is_no_program_is_refused() {
        for text in ["Rong 1", "Close", "Close 1 2", "Close 256", "Close x"] {
            assert!(text.parse::<Program>().is_err(), "{text}");
        }
        assert_eq!("".parse::<Program>().unwrap(), Program::default());
        let text = "# a comment\n\nClose 1; Exec\n";
        assert_eq!(
            read_programs(text).unwrap(),
            [Program(vec![Op::Close { slot: 1 }, Op::Exec {}])]
        );
    }
}
