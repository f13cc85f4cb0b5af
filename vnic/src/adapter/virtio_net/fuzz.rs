//! Hostile guests of the virtio-net device. Bytes become [`Step`]s, steps are taken, and after each is asserted what has to
//! hold (`watch.rs`).
//!
//! ```text
//!  bytes --> Step --> device <--> guest memory, between pages that nobody may touch
//!                       ^ \
//!                       |  `--> wires: frames that come, frames that leave, stores of the guest meanwhile
//!                     Watch: memory before and after, read anew and not by the device's own code
//! ```

mod watch;

use std::sync::Arc;

use toll_protocol::report::FrameCounters;
use toll_protocol::trial::{QueuePairs, VirtioNetSwitches};
use toll_protocol::units::MacAddress;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::{LONGEST_RECEIVED, LONGEST_SEGMENT, MINIMUM_FRAME, Ring, VirtioNet};
use crate::adapter::{Adapter, AdapterError};
use crate::fuzzing::packet::{pattern, tcp_segment};
use crate::fuzzing::wire::{SharedWire, WirePort, locked, store};
use crate::fuzzing::{Guarded, Input};
use crate::port::{Framing, Port};
use crate::vnet_header;
use watch::Watch;

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const MTU: u16 = 1500;
/// Two regions that meet, so that buffers may lie across them, and one behind a hole.
const REGIONS: [(u64, usize); 3] = [(0, 0xc000), (0xc000, 0x4000), (HOLE_END, 0x4000)];
/// Where the regions that meet end, and where the other one begins.
const HOLE: u64 = 0x1_0000;
const HOLE_END: u64 = 0x4_0000;
/// Queues at most: three pairs, and the control queue.
const QUEUES: usize = 7;
/// Addresses that a guest is likely to choose: buffers, its own queues, the ends of regions, nothing.
const PLACES: [u64; 16] = [
    0x4000,
    0x5000,
    0x6000,
    0x7000,
    0x8000,
    0x9000,
    0xb800,
    0xbffc,
    0xc000,
    0xd000,
    0xfff0,
    0x4_0000,
    0x4_3ff0,
    0x1000,
    0x1_0000,
    u64::MAX - 0x100,
];
/// Lengths at which something changes: a header, the shortest frame, the longest without and with a tag, a segment.
const LENGTHS: [u32; 16] =
    [0, 1, 11, 12, 13, 25, 26, 64, 100, 1526, 1530, 1531, 2048, 4096, 0xffff, 0xffff_ffff];
/// Registers that a driver writes.
const REGISTERS: [u16; 16] =
    [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac];
const NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// Where commands and their answers, and the segments that a guest sends, lie.
const COMMAND: u64 = 0x3000;
const SEGMENT: u64 = 0xd000;
/// Steps of one input at most.
const STEPS: usize = 512;
/// Frames that wait on a wire at most.
const WAITING: usize = 256;

/// Descriptor table, available ring and used ring of a queue of up to 16 descriptors.
const fn areas(queue: usize) -> [u64; 3] {
    let base = 0x1000 + 0x400 * queue as u64;
    [base, base + 0x100, base + 0x200]
}

/// One thing that a guest, its wire or its machine does. Queues are counted modulo those that there can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Reads so many bytes at an offset.
    Read(u16, u8),
    /// Writes so many bytes at an offset.
    Write(u16, u8, u32),
    /// Stores a word at an address.
    Store(u32, u32),
    /// Writes a descriptor.
    Describe {
        /// Of which queue.
        queue: u8,
        /// Which.
        index: u8,
        /// Address of its buffer.
        address: u64,
        /// Its length.
        length: u32,
        /// Its flags.
        flags: u16,
        /// The one that follows.
        next: u16,
    },
    /// Makes the chain that begins with a descriptor available.
    Give(u8, u16),
    /// Notifies a queue.
    Notify(u8),
    /// Sends a TCP segment that may be joined with others: queue, sequence number, flags, bytes of payload.
    Segment(u8, u8, u8, u16),
    /// Commands something.
    Command(u8, u8, Vec<u8>),
    /// So many frames come: pair, kind, length, header.
    Arrive {
        /// By which pair's queue of the port.
        pair: u8,
        /// How many.
        count: u8,
        /// What is in them.
        kind: u8,
        /// Their length.
        length: u16,
        /// Flags, segmentation, bytes of a segment.
        header: [u8; 3],
    },
    /// The machine lets the device look at rings and port.
    Service,
    /// Somebody looks at the rings without being notified, or no longer.
    Watch(bool),
    /// A word is stored while the port moves the next frame: memory that changes under the device's hands.
    StoreMidway(u8, u32, u32),
    /// The driver begins anew, with these of the features that are offered.
    Live(u32),
}

impl Step {
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let place =
            |input: &mut Input<'_>| Some(input.one_of(&PLACES)?.wrapping_add(u64::from(input.byte()?)));
        Some(match input.byte()? % 20 {
            0 => Self::Read(input.word()? % 0x210, input.byte()? % 9),
            1 => Self::Write(input.word()? % 0x210, input.byte()? % 9, input.long()?),
            2 => Self::Write(input.one_of(&REGISTERS)?, 4, input.long()?),
            3 => Self::Write(input.one_of(&REGISTERS)?, 4, u32::from(input.byte()?)),
            4 => Self::Store(place(input)? as u32, input.long()?),
            // Indices and flags of a queue.
            5 => {
                let (queue, at) = (usize::from(input.byte()?) % QUEUES, u64::from(input.byte()?) & !1);
                Self::Store((areas(queue)[1] + at) as u32, input.long()?)
            }
            6..=9 => {
                let (queue, index, how) = (input.byte()?, input.byte()?, input.byte()?);
                let address = if how & 8 == 0 { place(input)? } else { u64::from(input.long()?) };
                let length =
                    if how & 16 == 0 { input.one_of(&LENGTHS)? } else { u32::from(input.word()? % 3000) };
                let next = if how & 32 == 0 { u16::from(index) + 1 } else { u16::from(how >> 6) };
                Self::Describe { queue, index, address, length, flags: u16::from(how) & 7, next }
            }
            10 | 11 => Self::Give(input.byte()?, u16::from(input.byte()? % 18)),
            12 => Self::Notify(input.byte()?),
            13 => Self::Segment(input.byte()?, input.byte()?, input.byte()?, input.word()? % 3000),
            14 => {
                let (class, command, length) = (input.byte()? % 8, input.byte()? % 8, input.byte()? % 32);
                let about: Option<Vec<u8>> = (0..length).map(|_| input.byte()).collect();
                Self::Command(class, command, about?)
            }
            15 | 16 => {
                let (pair, count, kind) = (input.byte()?, input.byte()?, input.byte()?);
                let length = input.word()?;
                let length = if kind & 0x80 == 0 { length % 1600 } else { length };
                Self::Arrive {
                    pair,
                    count,
                    kind,
                    length,
                    header: [input.byte()?, input.byte()?, input.byte()?],
                }
            }
            17 => Self::Service,
            18 => match input.byte()? {
                how if how & 1 == 0 => Self::StoreMidway(how >> 1, place(input)? as u32, input.long()?),
                how => Self::Watch(how & 2 != 0),
            },
            _ => Self::Live(input.long()?),
        })
    }
}

/// What a byte says of the switches.
fn switches(bits: u8) -> VirtioNetSwitches {
    let on = |bit: u8| bits >> bit & 1 != 0;
    VirtioNetSwitches {
        event_index: on(0),
        mergeable_buffers: on(1),
        checksum_offload: on(2),
        tso: on(2) && on(3),
        segment_combining: on(4),
        control_queue: on(5),
        queue_pairs: if on(5) && on(6) { QueuePairs::new(3).expect("1 to 8") } else { QueuePairs::ONE },
        io_thread: false,
    }
}

/// A device in the hands of a hostile guest.
#[derive(Debug)]
struct Guest {
    // Dropped before the memory that it uses.
    device: VirtioNet,
    switches: VirtioNetSwitches,
    wires: Vec<SharedWire>,
    guarded: Guarded,
    /// Next available index of each queue, as this driver counts.
    available: [u16; QUEUES],
    /// Descriptors of a queue.
    size: u16,
    arrived: u8,
}

impl Guest {
    fn new(switches: VirtioNetSwitches, size: u16) -> Self {
        let guarded = Guarded::new(&REGIONS);
        let framing = if switches.offloads() { Framing::VirtioNetHeader } else { Framing::Bare };
        let wires: Vec<_> = (0..switches.queue_pairs.count()).map(|_| SharedWire::default()).collect();
        let ports = wires.iter().map(|wire| -> Box<dyn Port> {
            let memory = guarded.memory().clone();
            Box::new(WirePort {
                wire: Arc::clone(wire),
                memory,
                framing,
                lengths: MINIMUM_FRAME..=LONGEST_SEGMENT,
            })
        });
        let device = VirtioNet::new(guarded.memory().clone(), ports.collect(), MAC, MTU, switches)
            .expect("as many ports as pairs, with headers where they are needed");
        Self { device, switches, wires, guarded, available: [0; QUEUES], size, arrived: 0 }
    }

    fn write(&mut self, offset: u64, value: u32) -> Result<(), AdapterError> {
        self.device.write(offset, &value.to_le_bytes())
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let _ = self.guarded.memory().write_slice(bytes, GuestAddress(at));
    }

    /// The driver's way to a live device (3.1.1).
    fn live(&mut self, mask: u32) -> Result<(), AdapterError> {
        self.write(STATUS, 0)?;
        for status in [1, 3] {
            self.write(STATUS, status)?;
        }
        let mut offered = [0; 4];
        self.write(0x14, 0)?;
        self.device.read(0x10, &mut offered)?;
        for (half, features) in [(0, u32::from_le_bytes(offered) & mask), (1, 1)] {
            self.write(0x24, half)?;
            self.write(0x20, features)?;
        }
        self.write(STATUS, 11)?;
        for queue in 0..QUEUES {
            let [table, available, used] = areas(queue);
            self.put(available, &[0; 4]);
            self.put(used, &[0; 4]);
            self.available[queue] = 0;
            self.write(0x30, queue as u32)?;
            self.write(0x38, self.size.into())?;
            for (register, area) in [(0x80, table), (0x90, available), (0xa0, used)] {
                self.write(register, area as u32)?;
                self.write(register + 4, 0)?;
            }
            self.write(0x44, 1)?;
        }
        self.write(STATUS, 15)
    }

    fn describe(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        let at = areas(queue)[0] + 16 * u64::from(index % 16);
        self.put(at, &[address.to_le_bytes(), rest.to_le_bytes()].concat());
    }

    fn give(&mut self, queue: usize, head: u16) {
        let at = areas(queue)[1];
        let slot = u64::from(self.available[queue] % self.size);
        self.put(at + 4 + 2 * slot, &head.to_le_bytes());
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.put(at + 2, &self.available[queue].to_le_bytes());
    }

    /// A segment in the transmit queue of a pair, which lies in one piece behind its header.
    fn segment(&mut self, pair: u8, number: u8, flags: u8, payload: u16) {
        let queue = 2 * (usize::from(pair) % self.wires.len()) + 1;
        let index = self.available[queue] % self.size;
        let at = SEGMENT + 0x800 * u64::from(index % 4);
        let payload = usize::from(payload) % 0x700;
        let bytes = tcp_segment(MAC.0, u32::from(number) * payload as u32, flags, payload, number);
        let mut header = [0; vnet_header::LENGTH];
        if self.device.bus.features.receive_offloads().checksum {
            header[vnet_header::FLAGS] = vnet_header::NEEDS_CSUM;
            header[vnet_header::CSUM_START] = 34;
            header[vnet_header::CSUM_OFFSET] = 16;
        }
        self.put(at, &[&header[..], &bytes].concat());
        self.describe(queue, index, at, (header.len() + bytes.len()) as u32, 0, 0);
        self.give(queue, index);
    }

    /// Where this driver believes the control queue to be.
    fn control_queue(&self) -> usize {
        self.device.mmio.control_queue().unwrap_or(QUEUES - 1)
    }

    /// Makes a command available, cut behind its class, with room for the answer.
    fn command(&mut self, class: u8, command: u8, about: &[u8]) {
        let (queue, answer) = (self.control_queue(), COMMAND + 0x80);
        self.put(COMMAND, &[&[class, command], about].concat());
        self.describe(queue, 0, COMMAND, 1, NEXT, 1);
        self.describe(queue, 1, COMMAND + 1, 1 + about.len() as u32, NEXT, 2);
        self.describe(queue, 2, answer, 1, WRITE, 0);
        self.give(queue, 0);
    }

    fn arrive(&mut self, pair: u8, kind: u8, length: u16, header: [u8; 3]) {
        let number = self.arrived;
        self.arrived = number.wrapping_add(1);
        let [flags, gso_type, gso_size] = header;
        let destination = if kind & 1 == 0 { MAC.0 } else { [0x33, 0x33, 0, 0, 0, 1] };
        let (segments, bytes) = match kind >> 1 & 3 {
            0 | 1 => (gso_type, destination.into_iter().chain(pattern(number, length.into())).collect()),
            2 => {
                let tag = [0x52, 0x54, 0, 0, 0, 9, 0x81, 0, 0, number];
                (0, destination.into_iter().chain(tag).chain(pattern(number, length.into())).collect())
            }
            // IPv4, TCP.
            _ => (1, tcp_segment(destination, 0, 0x10, length.into(), number)),
        };
        let mut frame = Vec::new();
        if self.switches.offloads() {
            frame.extend([0; vnet_header::LENGTH]);
            frame[vnet_header::FLAGS] = flags;
            frame[vnet_header::GSO_TYPE] = segments;
            frame[vnet_header::GSO_SIZE] = gso_size;
            frame[vnet_header::GSO_SIZE + 1] = gso_type;
            frame[vnet_header::CSUM_START] = flags;
            frame[vnet_header::CSUM_OFFSET] = gso_size;
        }
        frame.extend::<Vec<u8>>(bytes);
        let mut wire = locked(&self.wires[usize::from(pair) % self.wires.len()]);
        if wire.waiting.len() < WAITING {
            wire.waiting.push_back(frame);
        }
    }

    /// Does what the guest and its wire do by themselves in a step; whether the device is to do something then.
    fn prepare(&mut self, step: &Step) -> bool {
        let queue = |queue: u8| usize::from(queue) % QUEUES;
        match step {
            Step::Store(at, value) => store(self.guarded.memory(), *at, *value),
            Step::Describe { queue: of, index, address, length, flags, next } => {
                self.describe(queue(*of), u16::from(*index), *address, *length, *flags, *next);
            }
            Step::Give(of, head) => self.give(queue(*of), *head),
            Step::Segment(pair, number, flags, payload) => self.segment(*pair, *number, *flags, *payload),
            Step::Arrive { pair, count, kind, length, header } => {
                // Few, or as many as a busy wire has.
                let count = if *count >= 0xf0 { 64 } else { 1 + count % 4 };
                (0..count).for_each(|_| self.arrive(*pair, *kind, *length, *header));
            }
            Step::StoreMidway(pair, at, value) => {
                let pair = usize::from(*pair) % self.wires.len();
                locked(&self.wires[pair]).stores.push_back((*at, *value));
            }
            Step::Command(class, command, about) => {
                self.command(*class, *command, about);
                return true;
            }
            Step::Read(..)
            | Step::Write(..)
            | Step::Notify(_)
            | Step::Service
            | Step::Watch(_)
            | Step::Live(_) => return true,
        }
        false
    }

    /// Lets the device do its part of a step.
    fn access(&mut self, step: &Step) -> Result<(), AdapterError> {
        match step {
            Step::Read(offset, width) => {
                self.device.read((*offset).into(), &mut [0; 16][..usize::from((*width).min(16))])
            }
            Step::Write(offset, width, value) => {
                let data = u64::from(*value).to_le_bytes();
                self.device.write((*offset).into(), &data[..usize::from((*width).min(8))])
            }
            Step::Notify(queue) => self.write(NOTIFY, u32::from(*queue) % QUEUES as u32),
            Step::Command(..) => self.write(NOTIFY, self.control_queue() as u32),
            Step::Service => self.device.service().map(drop),
            Step::Watch(watched) => self.device.watch(*watched).map(drop),
            Step::Live(mask) => self.live(if mask & 3 == 0 { u32::MAX } else { *mask }),
            _ => Ok(()),
        }
    }

    /// Takes a step and asserts what has to hold after it.
    fn take(&mut self, step: &Step) {
        if self.prepare(step) {
            let watch = Watch::begin(self, step);
            let result = self.access(step);
            watch.end(self, &result);
        }
    }

    fn take_all(&mut self, input: &mut Input<'_>) {
        for _ in 0..STEPS {
            let Some(step) = Step::parse(input) else { break };
            self.take(&step);
        }
    }
}

/// Any accesses to a device after reset, or to one that is live. What it moved, unless there are too few bytes to begin.
pub fn registers(input: &[u8]) -> Option<FrameCounters> {
    let mut input = Input(input);
    let (bits, first) = (input.byte()?, input.byte()?);
    let mut guest = Guest::new(switches(bits), 1 << (first >> 1 & 3));
    if first & 1 != 0 {
        guest.take(&Step::Live(0));
    }
    guest.take_all(&mut input);
    Some(guest.device.counters())
}

/// A live device, queues of any content, then any accesses. What it moved, unless there are too few bytes to begin.
pub fn queues(input: &[u8]) -> Option<FrameCounters> {
    let mut input = Input(input);
    let (bits, size, mask, count) = (input.byte()?, input.byte()? % 5, input.long()?, input.byte()?);
    let mut guest = Guest::new(switches(bits), 1 << size);
    guest.take(&Step::Live(mask));
    for _ in 0..count {
        // Buffers alone, one descriptor each, whatever the bytes mean elsewhere: half of them where a driver has them.
        let (queue, place, length) = (input.byte()?, input.byte()?, input.word()?);
        let queue = usize::from(queue) % QUEUES;
        let index = guest.available[queue] % guest.size;
        let address = if place & 1 == 0 {
            0x4000 + 0x100 * u64::from(place)
        } else {
            PLACES[usize::from(place >> 1) % 16]
        };
        let flags = if queue.is_multiple_of(2) { WRITE } else { 0 };
        guest.describe(queue, index, address, u32::from(length) % 0x900, flags, 0);
        guest.give(queue, index);
    }
    guest.take_all(&mut input);
    Some(guest.device.counters())
}

/// These steps, by a guest with a live device.
#[cfg(test)]
pub(crate) fn steps(bits: u8, steps: &[Step]) {
    let mut guest = Guest::new(switches(bits), 8);
    guest.take(&Step::Live(0));
    steps.iter().for_each(|step| guest.take(step));
}
