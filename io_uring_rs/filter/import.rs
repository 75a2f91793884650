// SPDX-License-Identifier: GPL-2.0

//! Reads and checks the argument of `IORING_REGISTER_BPF_FILTER`.

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

/// A filter to register, checked except for its program.
pub(super) struct Registration {
    /// The opcode to filter.
    pub(super) opcode: Opcode,
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

/// Checks all fields whose values do not depend on the opcode. Returns the opcode and the program's
/// length.
fn check_fields(bpf: &Bpf) -> Result<(Opcode, u16)> {
    let filter = bpf.filter();

    if bpf.cmd_type() != BPF_CMD_FILTER || !bpf.reserved_is_zero() {
        return Err(EINVAL);
    }
    let opcode = Opcode::new(filter.opcode()).ok_or(EINVAL)?;
    if filter.flags() & !(BPF_FILTER_DENY_REST | BPF_FILTER_SZ_STRICT) != 0
        || !filter.reserved_is_zero()
        || filter.is_empty()
        || filter.len() > MAX_INSNS
    {
        return Err(EINVAL);
    }
    Ok((opcode, u16::try_from(filter.len())?))
}

/// Reads and checks `arg`, a `struct io_uring_bpf` in user space. Writes the actual size of the
/// opcode's arguments back to it, also if this fails with [`EMSGSIZE`].
///
/// # Errors
///
/// - [`EFAULT`] if `arg` cannot be read or written.
/// - [`EINVAL`] for a value that is unknown, reserved or out of range.
/// - [`EMSGSIZE`] if the caller expects another size of the opcode's arguments.
pub(super) fn import(arg: UserPtr) -> Result<Registration> {
    let bpf: Bpf = UserSlice::new(arg, size_of::<Bpf>()).reader().read()?;
    let (opcode, len) = check_fields(&bpf)?;
    let mut filter = bpf.filter();
    let strict = filter.flags() & BPF_FILTER_SZ_STRICT != 0;
    let verdict = check_pdu_size(filter.pdu_size(), opcode.pdu_size(), strict);

    // This is at most 24, see `Opcode::pdu_size`.
    filter.set_pdu_size(opcode.pdu_size() as u8);
    UserSlice::new(
        arg.wrapping_byte_add(Bpf::FILTER_OFFSET),
        size_of::<BpfFilter>(),
    )
    .writer()
    .write(&filter)?;
    verdict?;

    Ok(Registration {
        opcode,
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
            Some(bpf) => check_fields(&bpf).map(|(opcode, len)| (opcode.index(), len)),
            None => Err(ENOENT),
        };
        assert_eq!(check(&valid), Ok((LAST, 1)));

        for (offset, value, expected) in [
            (0, 0, Err(EINVAL)),              // cmd_type 0
            (0, 2, Err(EINVAL)),              // cmd_type 2
            (2, 1, Err(EINVAL)),              // cmd_flags
            (4, 1, Err(EINVAL)),              // resv
            (8, LAST as u8 + 1, Err(EINVAL)), // opcode IORING_OP_LAST
            (11, 1, Err(EINVAL)),             // opcode + 2^24
            (12, 3, Ok((LAST, 1))),           // both flags
            (12, 4, Err(EINVAL)),             // unknown flag
            (15, 0x80, Err(EINVAL)),
            (16, 0, Err(EINVAL)),      // no instructions
            (17, 16, Err(EINVAL)),     // 4097
            (18, 1, Err(EINVAL)),      // 65537
            (20, 255, Ok((LAST, 1))),  // pdu_size is not judged here
            (24, 1, Ok((LAST, 1))),    // nor is the pointer
            (31, 0xff, Ok((LAST, 1))), // nor is the pointer
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
        assert_eq!(check(&valid), Ok((LAST, 4096)));
        Ok(())
    }
}
