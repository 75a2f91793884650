// SPDX-License-Identifier: GPL-2.0
//! Interface queues: registration, import, control operations, and the refill queue as
//! user space may fill it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use fastrand::Rng;

use super::machine::{Machine, Mode};
use super::op::Op;
use super::values::{PAGES, STRUCTURES};
use crate::kernel::describe;
use crate::nic::{QUEUE, QUEUES};
use crate::register::{PAGE_SIZE, register};
use crate::wide::Mapping;
use crate::zcrx::{
    AREA_SHIFT, AreaReg, Ctrl, EventDesc, IORING_MEM_REGION_TYPE_USER, IORING_REGISTER_ZCRX_CTRL,
    IORING_REGISTER_ZCRX_IFQ, IORING_ZCRX_AREA_DMABUF, IfqReg, RQES, RegionDesc, Rqe, TAIL,
    ZCRX_CTRL_ADD_AREA, ZCRX_CTRL_EXPORT, ZCRX_CTRL_FLUSH_RQ, ZCRX_EVENT_DESC_FLAG_STATS,
    ZCRX_REG_IMPORT, ZCRX_REG_NODEV, map_offset, pattern, region_size,
};

/// The places of structures for registrations.
const REG: usize = 0;
const REGION: usize = 256;
const AREA: usize = 512;
const EVENT: usize = 768;
/// The number of calls in which a refill queue is flushed.
const FLUSHES: u32 = 40;

/// An area: its token, and its memory.
#[derive(Clone)]
struct Area {
    token: u64,
    address: u64,
    len: usize,
}

/// An interface queue that a ring of the program has or had.
pub struct Queue {
    /// The file descriptor of the ring, and the id of the queue there.
    ring: RawFd,
    pub id: u32,
    entries: u32,
    /// The size of the region of the refill queue in bytes, and the region, if it can be
    /// mapped.
    region: usize,
    refill: Option<Arc<Mapping>>,
    areas: Vec<Area>,
    /// The offsets of the buffers that completions have handed out.
    held: Vec<u64>,
}

impl Queue {
    /// Returns the same queue for another thread, which holds no buffers.
    pub fn shared(&self) -> Self {
        Queue {
            refill: self.refill.clone(),
            areas: self.areas.clone(),
            held: Vec::new(),
            ..*self
        }
    }

    fn push(&self, offset: u64, pad: u32) {
        let Some(refill) = &self.refill else {
            return;
        };
        let tail = refill.word(TAIL).load(Acquire);
        let slot = (tail & (self.entries - 1)) as usize;
        let at = RQES + 16 * slot;
        if at + 16 <= refill.len() {
            let (off, len) = (offset, 0);
            refill.write(at, Rqe { off, len, pad });
        }
        let next = tail.wrapping_add(1);
        let word = refill.word(TAIL);
        word.store(next, Release);
    }

    fn pending(&self) -> u32 {
        let Some(refill) = &self.refill else {
            return 0;
        };
        let word = |at| refill.word(at).load(Acquire);
        word(TAIL).wrapping_sub(word(0))
    }

    fn flush(&self) -> i32 {
        let mut ctrl = Ctrl {
            zcrx_id: self.id,
            op: ZCRX_CTRL_FLUSH_RQ,
            ..Default::default()
        };
        crate::zcrx::control(self.ring, &mut ctrl)
    }
}

impl Machine<'_> {
    /// Returns the queue that a byte names.
    fn queue(&self, queue: u8) -> Option<&Queue> {
        let count = self.queues.len();
        (count != 0).then(|| &self.queues[usize::from(queue) % count])
    }

    pub fn make_queue(&mut self, op: Op) {
        let Op::Queue {
            slot,
            entries,
            first,
            pages,
            options,
            bend,
            number,
        } = op
        else {
            return;
        };
        let entries = 1 << (entries % 10);
        let (has_event, has_stats) = (options & 1 != 0, options & 2 != 0);
        let (own, on_device) = (options & 12 == 12, options & 16 != 0 && self.on_device);
        let stats_at = (RQES + 16 * entries as usize).next_multiple_of(64) as u64;
        let area = AreaReg {
            addr: self.memory.page(usize::from(first)),
            len: (PAGE_SIZE * (1 + usize::from(pages) % 8)) as u64,
            ..Default::default()
        };
        let region = RegionDesc {
            size: (region_size(entries) + PAGE_SIZE) as u64,
            flags: if own { IORING_MEM_REGION_TYPE_USER } else { 0 },
            user_addr: if own {
                self.memory.page(usize::from(first) + PAGES / 2)
            } else {
                0
            },
            ..Default::default()
        };
        let event = EventDesc {
            user_data: u64::MAX << 32,
            type_mask: u32::from(options >> 6),
            flags: if has_stats {
                ZCRX_EVENT_DESC_FLAG_STATS
            } else {
                0
            },
            stats_offset: if has_stats { stats_at } else { 0 },
            ..Default::default()
        };
        // Each structure has words of its own that `bend` names.
        let said = IfqReg {
            rq_entries: entries,
            flags: if on_device { 0 } else { ZCRX_REG_NODEV },
            if_idx: if on_device {
                self.device.map_or(0, |device| device.index())
            } else {
                0
            },
            if_rxq: if on_device {
                QUEUE + u32::from(options >> 5) % (QUEUES - QUEUE)
            } else {
                0
            },
            area_ptr: self.write_bent(AREA, area, 24, bend, number),
            region_ptr: self.write_bent(REGION, region, 36, bend, number),
            event_desc: match has_event {
                true => self.write_bent(EVENT, event, 52, bend, number),
                false => 0,
            },
            ..Default::default()
        };
        self.limit_sizes();
        let address = self.write_bent(REG, said, 0, bend, number);
        let fd = self.ring_fd(slot);
        let got = register(fd, IORING_REGISTER_ZCRX_IFQ, address as *const _, 1);
        self.result(got);
        if got != 0 {
            return;
        }
        let blocks = &self.memory.blocks;
        let reg: IfqReg = blocks.read(STRUCTURES + REG);
        let area: AreaReg = blocks.read(STRUCTURES + AREA);
        let region: RegionDesc = blocks.read(STRUCTURES + REGION);
        let shown = (reg.zcrx_id, reg.rq_entries, reg.rx_buf_len, reg.offsets);
        self.log.say(&format!(
            "{shown:x?} {:x} {:x}",
            area.rq_area_token, region.mmap_offset
        ));
        self.queues.push(Queue {
            ring: fd,
            id: reg.zcrx_id,
            entries: reg.rq_entries,
            region: region.size as usize,
            refill: map_refill(fd, reg.zcrx_id, region.size as usize),
            areas: vec![Area {
                token: area.rq_area_token,
                address: area.addr,
                len: area.len as usize,
            }],
            held: Vec::new(),
        });
    }

    /// Makes sizes smaller for which the kernel would allocate all memory: it allocates
    /// eight bytes for each page before it looks at the pages, or the pages themselves.
    fn limit_sizes(&self) {
        const MOST: u64 = 1 << 24;
        const REFUSED: u64 = 1 << 43;
        let blocks = &self.memory.blocks;
        for at in [
            STRUCTURES + AREA + std::mem::offset_of!(AreaReg, len),
            STRUCTURES + REGION + std::mem::offset_of!(RegionDesc, size),
        ] {
            if (MOST..REFUSED).contains(&blocks.read::<u64>(at)) {
                blocks.write(at, MOST);
            }
        }
    }

    pub fn import(&mut self, op: Op) {
        let Op::Import {
            slot,
            file,
            bend,
            number,
        } = op
        else {
            return;
        };
        let count = self.files.len();
        let file = match count {
            0 => u32::from(file),
            _ => self.files[usize::from(file) % count] as u32,
        };
        let said = IfqReg {
            if_idx: file,
            flags: ZCRX_REG_IMPORT,
            ..Default::default()
        };
        let address = self.write_bent(REG, said, 0, bend, number);
        let fd = self.ring_fd(slot);
        let got = register(fd, IORING_REGISTER_ZCRX_IFQ, address as *const _, 1);
        self.result(got);
        if got != 0 {
            return;
        }
        let reg: IfqReg = self.memory.blocks.read(STRUCTURES + REG);
        self.log.say(&format!("{:x?}", (reg.zcrx_id, reg.offsets)));
        // The registration does not say which queue it is. The last one is most likely.
        let (entries, region, areas) = match self.queues.last() {
            Some(queue) => (queue.entries, queue.region, queue.areas.clone()),
            None => (1, region_size(1), Vec::new()),
        };
        self.queues.push(Queue {
            ring: fd,
            id: reg.zcrx_id,
            entries,
            region,
            refill: map_refill(fd, reg.zcrx_id, region),
            areas,
            held: Vec::new(),
        });
    }

    pub fn control(&mut self, op: Op) {
        let Op::Control {
            slot,
            queue,
            op,
            first,
            pages,
            bend,
            number,
        } = op
        else {
            return;
        };
        let own = self.queue(queue).map(|queue| (queue.ring, queue.id));
        let (fd, id) = match own {
            Some(own) if slot < 192 => own,
            _ => (self.ring_fd(slot), u32::from(queue % 4)),
        };
        let mut said = Ctrl {
            zcrx_id: id,
            op: u32::from(op) % 5,
            ..Default::default()
        };
        let area = AreaReg {
            addr: self.memory.page(usize::from(first)),
            len: (PAGE_SIZE * (1 + usize::from(pages) % 8)) as u64,
            ..Default::default()
        };
        match said.op {
            ZCRX_CTRL_ADD_AREA => {
                let address = self.write_bent(AREA, area, 18, bend, number);
                self.limit_sizes();
                said.union[0] = address;
            }
            ZCRX_CTRL_EXPORT | ZCRX_CTRL_FLUSH_RQ => {}
            _ => said.union[0] = u64::from(first % 3),
        }
        let address = self.write_bent(REG, said, 0, bend, number);
        let done: Ctrl = self.memory.blocks.read(STRUCTURES + REG);
        let got = register(fd, IORING_REGISTER_ZCRX_CTRL, address as *const _, 0);
        self.log.say(&format!("op {}: {}", done.op, describe(got)));
        if got != 0 {
            return;
        }
        let after: Ctrl = self.memory.blocks.read(STRUCTURES + REG);
        match done.op {
            ZCRX_CTRL_EXPORT => self.keep(&[after.union[0] as RawFd]),
            ZCRX_CTRL_ADD_AREA => {
                let area: AreaReg = self.memory.blocks.read(STRUCTURES + AREA);
                self.log.say(&format!("{:x}", area.rq_area_token));
                let added = Area {
                    token: area.rq_area_token,
                    address: area.addr,
                    len: area.len as usize,
                };
                if area.flags & IORING_ZCRX_AREA_DMABUF == 0 {
                    let found = self
                        .queues
                        .iter_mut()
                        .find(|queue| queue.id == id && queue.ring == fd);
                    found
                        .into_iter()
                        .for_each(|queue| queue.areas.push(added.clone()));
                }
            }
            _ => {}
        }
    }

    /// Flushes all refill queues until nothing is pending, or the kernel refuses.
    pub fn flush_all(&self) {
        for queue in &self.queues {
            for _ in 0..FLUSHES {
                if queue.pending() == 0 || queue.flush() != 0 {
                    break;
                }
            }
        }
    }

    pub fn return_buffers(&mut self, op: Op) {
        let Op::Return {
            queue,
            which,
            count,
            noise,
        } = op
        else {
            return;
        };
        let number = self.queues.len();
        if number == 0 {
            return;
        }
        let queue = &mut self.queues[usize::from(queue) % number];
        let mut returned = 0;
        for _ in 0..1 + count % 16 {
            if queue.held.is_empty() {
                break;
            }
            let at = usize::from(which) % queue.held.len();
            // The place in the buffer is ignored.
            let offset = queue.held.swap_remove(at) ^ u64::from(noise % 16) << 8;
            queue.push(offset, 0);
            returned += 1;
        }
        self.log.say(&returned.to_string());
    }

    pub fn add_entries(&mut self, op: Op) {
        let Op::Entry {
            queue,
            area,
            index,
            noise,
            count,
        } = op
        else {
            return;
        };
        let Some(queue) = self.queue(queue) else {
            return;
        };
        let mut index = self.number(index);
        let mut area = u64::from(area % 4);
        if self.mode == Mode::Compare {
            // Which buffer is where differs, and so do offsets past 2^44: these name
            // buffers of no area.
            index = index % (1 << 20) + 64;
            area = u64::from(noise % 2) * area;
        }
        let offset = area << AREA_SHIFT | (index << 12) & ((1 << AREA_SHIFT) - 1);
        for _ in 0..1 + count % 32 {
            queue.push(offset, u32::from(noise == 77));
        }
    }

    pub fn write_header(&mut self, queue: u8, word: u8, number: u8) {
        let number = self.number(number) as u32;
        let Some(queue) = self.queue(queue) else {
            return;
        };
        let Some(refill) = &queue.refill else {
            return;
        };
        let tail = refill.word(TAIL);
        match word {
            // The kernel does not read the head.
            0..16 if self.mode == Mode::Race => refill.word(0).store(number, Relaxed),
            0..64 => tail.store(tail.load(Relaxed).wrapping_add(number % 8), Relaxed),
            // These consume entries that are there from before, which name buffers by
            // where they are.
            64..128 if self.mode == Mode::Race => tail.store(number, Relaxed),
            128.. if self.mode == Mode::Race => {
                let at = RQES + 4 * usize::from(word);
                if at + 4 <= refill.len() {
                    refill.word(at).store(number, Relaxed);
                }
            }
            _ => {}
        }
    }

    /// Starts a thread that overwrites a refill queue while the kernel reads it.
    pub fn scribble(&mut self, queue: u8, first: u8, seed: u8) {
        if self.mode == Mode::Compare {
            return;
        }
        let Some(refill) = self.queue(queue).and_then(|queue| queue.refill.clone()) else {
            return;
        };
        let mut rng = Rng::with_seed(seed.into());
        let token = u64::from(first % 2) << AREA_SHIFT;
        let overwrite = move || {
            for _ in 0..20_000 {
                let slot = rng.usize(..(refill.len() - RQES) / 16);
                let off = token | rng.u64(..16) << 12;
                let (len, pad) = (0, u32::from(rng.u8(..8) == 0));
                refill.write(RQES + 16 * slot, Rqe { off, len, pad });
                let tail = refill.word(TAIL);
                tail.fetch_add(rng.u32(..4), Release);
            }
        };
        // The thread ends with the process.
        std::thread::spawn(overwrite);
    }

    /// Takes the buffer that a completion has handed out. Returns what there is to say
    /// about it and about its data.
    pub fn take_buffer(
        &mut self,
        queue: usize,
        connection: usize,
        offset: u64,
        len: usize,
    ) -> String {
        let queue = &mut self.queues[queue];
        let connection = &mut self.connections[connection];
        let from = connection.taken;
        connection.taken += len;
        let base = offset >> AREA_SHIFT << AREA_SHIFT;
        let Some(area) = queue.areas.iter().find(|area| area.token == base) else {
            return "in no area".to_string();
        };
        let at = (offset - base) as usize;
        if at + len > area.len || at / PAGE_SIZE != (at + len - 1) / PAGE_SIZE {
            return "outside of buffers".to_string();
        }
        if queue
            .held
            .iter()
            .any(|other| other / PAGE_SIZE as u64 == offset / PAGE_SIZE as u64)
        {
            return "HANDED OUT TWICE".to_string();
        }
        queue.held.push(offset);
        match read_memory(area.address + at as u64, len) {
            None => "unreadable".to_string(),
            Some(data) if data == pattern(from, len) => "data".to_string(),
            Some(_) => "other data".to_string(),
        }
    }
}

/// Maps the refill queue of a queue of a ring, all `len` bytes of its region.
fn map_refill(fd: RawFd, id: u32, len: usize) -> Option<Arc<Mapping>> {
    Mapping::new(fd, map_offset(id), len).ok().map(Arc::new)
}

/// Reads this process's memory, which may not be mapped: a system call then fails. `len`
/// is at most what fits into a pipe.
fn read_memory(address: u64, len: usize) -> Option<Vec<u8>> {
    let (read, write) = nix::unistd::pipe().ok()?;
    // SAFETY: the kernel checks the address.
    let written = unsafe { libc::write(write.as_raw_fd(), address as *const _, len) };
    if written != len as isize {
        return None;
    }
    let mut data = vec![0; len];
    let got = nix::unistd::read(&read, &mut data).ok()?;
    (got == len).then_some(data)
}
