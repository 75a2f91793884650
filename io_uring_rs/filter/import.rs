// SPDX-License-Identifier: GPL-2.0

//! Reads and checks the argument of `IORING_REGISTER_BPF_FILTER`.

#[cfg(CONFIG_IO_URING_BPF_CALLS)]
use kernel::io_uring::{
    call::Call,
    uapi::{
        BPF_CMD_REGISTER,
        BPF_CMD_SETUP, //
    }, //
};
use kernel::{
    bpf::MAX_INSNS,
    io_uring::{
        uapi::{
            Bpf,
            BpfFilter,
            BPF_CMD_FILTER,
            BPF_FILTER_DENY_REST,
            BPF_FILTER_SZ_STRICT, //
        },
        Opcode, //
    },
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// The owner of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A ring, which sets up no others.
    Ring,
    /// A task.
    Task,
}

/// The target of a filter: the requests or calls that it decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Requests with an opcode.
    Request(Opcode),
    /// A system call.
    #[cfg(CONFIG_IO_URING_BPF_CALLS)]
    Call(Call),
}

impl Target {
    /// Returns the target that `cmd_type` and `opcode` name.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if they name none that `owner` can filter.
    fn new(cmd_type: u16, opcode: u32, owner: Owner) -> Result<Self> {
        let target = match (cmd_type, owner) {
            (BPF_CMD_FILTER, _) => Opcode::new(opcode).map(Self::Request),
            #[cfg(CONFIG_IO_URING_BPF_CALLS)]
            (BPF_CMD_REGISTER, _) => Call::register(opcode).map(Self::Call),
            #[cfg(CONFIG_IO_URING_BPF_CALLS)]
            (BPF_CMD_SETUP, Owner::Task) if opcode == 0 => Some(Self::Call(Call::SETUP)),
            _ => None,
        };

        target.ok_or(EINVAL)
    }

    /// Returns the size in bytes of the arguments that filters see, at most 24.
    fn pdu_size(self) -> u16 {
        match self {
            Self::Request(opcode) => opcode.pdu_size(),
            #[cfg(CONFIG_IO_URING_BPF_CALLS)]
            Self::Call(call) => call.pdu_size(),
        }
    }
}

/// A filter to register, checked except for its program.
pub(super) struct Registration {
    /// The requests or calls to filter.
    pub(super) target: Target,
    /// The address of the program in user space.
    pub(super) insns: UserPtr,
    /// The number of instructions: 1 to [`MAX_INSNS`].
    pub(super) len: u16,
    /// Whether opcodes without a filter are to be denied.
    pub(super) deny_rest: bool,
}

/// Checks `user`, the size in bytes that the caller expects filters to see of an opcode's
/// arguments, against the kernel's. Unless `strict`, it may be smaller: such a filter does not read
/// the rest.
///
/// # Errors
///
/// [`EMSGSIZE`] if the sizes do not go together.
fn check_pdu_size(user: u8, kernel: u16, strict: bool) -> Result {
    let user = u16::from(user);

    if user > kernel || (strict && user != kernel) {
        return Err(EMSGSIZE);
    }
    Ok(())
}

/// Checks all fields whose values do not depend on the opcode. Returns what `owner` wants to
/// filter, and the program's length.
fn check_fields(bpf: &Bpf, owner: Owner) -> Result<(Target, u16)> {
    let filter = bpf.filter();

    if !bpf.reserved_is_zero() {
        return Err(EINVAL);
    }
    let target = Target::new(bpf.cmd_type(), filter.opcode(), owner)?;
    if filter.flags() & !(BPF_FILTER_DENY_REST | BPF_FILTER_SZ_STRICT) != 0
        || !filter.reserved_is_zero()
        || filter.is_empty()
        || filter.len() > MAX_INSNS
    {
        return Err(EINVAL);
    }
    Ok((target, u16::try_from(filter.len())?))
}

/// Reads and checks `arg`, a `struct io_uring_bpf` in user space, for a filter of `owner`. Writes
/// the actual size of the opcode's arguments back to it, also if this fails with [`EMSGSIZE`].
///
/// # Errors
///
/// - [`EFAULT`] if `arg` cannot be read or written.
/// - [`EINVAL`] for a value that is unknown, reserved or out of range.
/// - [`EMSGSIZE`] if the caller expects another size of the opcode's arguments.
pub(super) fn import(arg: UserPtr, owner: Owner) -> Result<Registration> {
    let bpf: Bpf = UserSlice::new(arg, size_of::<Bpf>()).reader().read()?;
    let (target, len) = check_fields(&bpf, owner)?;
    let mut filter = bpf.filter();
    let strict = filter.flags() & BPF_FILTER_SZ_STRICT != 0;
    let verdict = check_pdu_size(filter.pdu_size(), target.pdu_size(), strict);

    // This is at most 24, see `Target::pdu_size`.
    filter.set_pdu_size(target.pdu_size() as u8);
    UserSlice::new(
        arg.wrapping_byte_add(Bpf::FILTER_OFFSET),
        size_of::<BpfFilter>(),
    )
    .writer()
    .write(&filter)?;
    verdict?;

    Ok(Registration {
        target,
        insns: filter.insns(),
        len,
        deny_rest: filter.flags() & BPF_FILTER_DENY_REST != 0,
    })
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_filter_import)]
mod tests {
    use super::*;
    use kernel::transmute::FromBytes;

    #[test]
    fn pdu_size_may_be_smaller_unless_strict() {
        for (user, kernel, strict, expected) in [
            (0, 0, false, Ok(())),
            (0, 0, true, Ok(())),
            (12, 12, true, Ok(())),
            (8, 12, false, Ok(())),
            (8, 12, true, Err(EMSGSIZE)),
            (0, 24, false, Ok(())),
            (24, 12, false, Err(EMSGSIZE)),
            (1, 0, false, Err(EMSGSIZE)),
            (255, 24, false, Err(EMSGSIZE)),
        ] {
            assert_eq!(check_pdu_size(user, kernel, strict), expected);
        }
    }

    /// Sets each byte of a valid argument to values that it may or may not have.
    #[test]
    fn unknown_bits_in_any_field_are_refused() -> Result {
        const LAST: usize = Opcode::COUNT - 1;
        let mut valid = [0u8; 72];
        valid[0] = 1; // cmd_type
        valid[8] = LAST as u8; // opcode
        valid[16] = 1; // filter_len

        let check = |bytes: &[u8]| match Bpf::from_bytes_copy(bytes) {
            Some(bpf) => check_fields(&bpf, Owner::Task),
            None => Err(ENOENT),
        };
        let last = Opcode::new(LAST as u32)
            .map(Target::Request)
            .ok_or(EINVAL)?;
        assert_eq!(check(&valid), Ok((last, 1)));

        for (offset, value, expected) in [
            (0, 0, Err(EINVAL)),              // cmd_type 0
            (0, 4, Err(EINVAL)),              // cmd_type 4
            (1, 1, Err(EINVAL)),              // cmd_type 257
            (2, 1, Err(EINVAL)),              // cmd_flags
            (4, 1, Err(EINVAL)),              // resv
            (8, LAST as u8 + 1, Err(EINVAL)), // opcode IORING_OP_LAST
            (11, 1, Err(EINVAL)),             // opcode + 2^24
            (12, 3, Ok((last, 1))),           // both flags
            (12, 4, Err(EINVAL)),             // unknown flag
            (15, 0x80, Err(EINVAL)),
            (16, 0, Err(EINVAL)),      // no instructions
            (17, 16, Err(EINVAL)),     // 4097
            (18, 1, Err(EINVAL)),      // 65537
            (20, 255, Ok((last, 1))),  // pdu_size is not judged here
            (24, 1, Ok((last, 1))),    // nor is the pointer
            (31, 0xff, Ok((last, 1))), // nor is the pointer
        ] {
            let mut bytes = valid;
            if let Some(byte) = bytes.get_mut(offset) {
                *byte = value;
            }
            assert_eq!(check(&bytes), expected);
        }
        for offset in (21..72).filter(|offset| !(24..32).contains(offset)) {
            let mut bytes = valid;
            if let Some(byte) = bytes.get_mut(offset) {
                *byte = 0x40;
            }
            assert_eq!(check(&bytes), Err(EINVAL));
        }
        valid[16] = 0;
        valid[17] = 16;
        assert_eq!(check(&valid), Ok((last, 4096)));
        Ok(())
    }

    /// Checks for each command, opcode and owner what would be filtered.
    #[test]
    fn calls_are_named_by_other_commands() {
        for owner in [Owner::Ring, Owner::Task] {
            for opcode in 0..300 {
                let request = Opcode::new(opcode).map(Target::Request).ok_or(EINVAL);
                assert_eq!(Target::new(1, opcode, owner), request);

                for (cmd_type, first, end, pdu_size) in [(2, 0, 38, 4), (3, 0, 1, 20), (4, 0, 0, 0)]
                {
                    let exists = cfg!(CONFIG_IO_URING_BPF_CALLS)
                        && (first..end).contains(&opcode)
                        && (cmd_type == 2 || owner == Owner::Task);
                    let size = Target::new(cmd_type, opcode, owner).map(Target::pdu_size);

                    assert_eq!(size, if exists { Ok(pdu_size) } else { Err(EINVAL) });
                }
            }
        }
    }
}
