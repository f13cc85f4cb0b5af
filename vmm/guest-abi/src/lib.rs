//! What the VMM and the payload program agree on. The VMM writes [`BootInfo`] before the first instruction and
//! [`Command`] later; the program writes [`Status`]. All three live in pages shared by both, so that progress
//! can be read without an exit. Doorbells are port writes that always exit.
//!
//! The VMM believes nothing here: a program may write any value at any time.
#![no_std]

use core::sync::atomic::{AtomicU32, AtomicU64};

/// `BootInfo::magic`: "TOLLBOOT".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TOLLBOOT");
/// Version of this interface.
pub const VERSION: u32 = 7;

/// Doorbells: 32-bit writes to an I/O port.
pub mod doorbell {
    /// Sleep until the adapter has work for the guest or so many microseconds have passed (at most
    /// `u32::MAX`). Before it sleeps the VMM takes what the rings hold: one exit for flush, fill and sleep.
    pub const WAIT: u16 = 0x0f00;
    /// The value is a [`super::phase`] that has begun.
    pub const PHASE: u16 = 0x0f04;
    /// The program has ended: the value is 0, or 1 with its last words in `Status::message`.
    pub const END: u16 = 0x0f08;
}

/// The program's phases, in this order.
pub mod phase {
    /// Set up, listening or waiting for `Command::start`.
    pub const READY: u32 = 1;
    /// Every flow has carried payload; the warm-up has begun.
    pub const WARM_UP: u32 = 2;
    /// The measured interval has begun.
    pub const MEASURE: u32 = 3;
    /// The measured interval is over.
    pub const MEASURED: u32 = 4;
    /// The traffic is over; nothing more will be sent.
    pub const CLOSED: u32 = 5;
}

/// `BootInfo::adapter`: which adapter the guest has.
pub mod adapter {
    /// AMD Am79C970A; `adapter_base` is an I/O port.
    pub const PCNET: u32 = 1;
    /// virtio-net over MMIO; `adapter_base` is a guest physical address.
    pub const VIRTIO_NET: u32 = 2;
}

/// `BootInfo::switches` of `virtio-net`: what the driver has to negotiate.
pub mod virtio_net {
    /// TCP checksums are left to the device, both ways.
    pub const CHECKSUM_OFFLOAD: u64 = 1 << 0;
    /// TCP segments of up to 64 KiB, both ways.
    pub const TSO: u64 = 1 << 1;
    /// Received frames may lie in several buffers.
    pub const MERGEABLE_BUFFERS: u64 = 1 << 2;
    /// Notifications by index.
    pub const EVENT_INDEX: u64 = 1 << 3;
    /// The device looks at its rings while the program runs: it says whether it wants to be notified of buffers, and
    /// interrupts a wait for room if it is asked to.
    pub const IO_THREAD: u64 = 1 << 4;
    /// The device is told what to receive, and by how many queue pairs.
    pub const CONTROL_QUEUE: u64 = 1 << 5;
}

/// `Traffic::kind`: what traffic the program carries.
pub mod kind {
    /// Bulk TCP.
    pub const STREAM: u32 = 1;
}

/// `Traffic::direction`.
pub mod direction {
    /// The program sends.
    pub const SEND: u32 = 1;
    /// The program receives.
    pub const RECEIVE: u32 = 2;
    /// The program does both at the same time, by flows of their own. Those whose payload the listening end receives come
    /// to its `listen_port`, the others to the next one.
    pub const BOTH: u32 = 3;
}

/// `Traffic::congestion_control`.
pub mod congestion {
    /// RFC 9438.
    pub const CUBIC: u32 = 1;
    /// RFC 5681.
    pub const RENO: u32 = 2;
}

/// Flows that a program carries each way at most.
pub const MAX_FLOWS: usize = 128;

/// `BootInfo::open`.
pub mod open {
    /// The program listens on `listen_port`.
    pub const LISTEN: u32 = 1;
    /// The program connects to `Command::peer_*` once `Command::start` is 1.
    pub const CONNECT: u32 = 2;
}

/// What traffic the program carries, and its parameters.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// One of [`kind`].
    pub kind: u32,
    /// One of [`direction`].
    pub direction: u32,
    /// Flows in parallel, each way, 1 to [`MAX_FLOWS`].
    pub flows: u32,
    /// Bytes of each send or receive call.
    pub write_size: u32,
    /// One of [`congestion`].
    pub congestion_control: u32,
    /// 0: what follows stays aligned.
    pub reserved: u32,
}

/// Written by the VMM before the guest starts, read-only for the guest.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// One of [`adapter`].
    pub adapter: u32,
    /// Where its registers are.
    pub adapter_base: u64,
    /// Frequency of the time stamp counter.
    pub tsc_hz: u64,
    /// Memory for the program's heap, rings and buffers: guest physical address.
    pub arena_base: u64,
    /// Its length in bytes.
    pub arena_length: u64,
    /// Left out of the figure, nanoseconds.
    pub warm_up_ns: u64,
    /// The measured interval, nanoseconds.
    pub duration_ns: u64,
    /// How long an end that has measured waits for a word of its peer before it gives the connection up, nanoseconds.
    pub patience_ns: u64,
    /// What it is to carry.
    pub traffic: Traffic,
    /// One of [`open`].
    pub open: u32,
    /// MTU in bytes of IP packet.
    pub mtu: u32,
    /// IPv4 address, network order.
    pub address: [u8; 4],
    /// Length of its network's prefix.
    pub prefix: u32,
    /// IPv4 address of who takes what goes to other networks, network order; 0.0.0.0 if there is nobody.
    pub gateway: [u8; 4],
    /// Queue pairs that a virtio-net driver is to use.
    pub queue_pairs: u32,
    /// TCP port to listen on, and the next one if payload goes both ways.
    pub listen_port: u16,
    /// MAC address; zero bytes pad it.
    pub mac: [u8; 6],
    /// Seed for what a TCP stack draws at random.
    pub random_seed: u64,
    /// Switches of the adapter, all off if 0: bits of [`virtio_net`].
    pub switches: u64,
}

/// Written by the VMM, read by the guest.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Command {
    /// Becomes 1 when the peer below is valid and the program shall connect.
    pub start: AtomicU32,
    /// Peer's IPv4 address, network order in memory.
    pub peer_address: AtomicU32,
    /// Peer's TCP port in the low 16 bits.
    pub peer_port: AtomicU32,
}

/// Longest last words, in bytes.
pub const MESSAGE_LENGTH: usize = 512;

/// What a program has carried.
#[repr(C)]
#[derive(Debug)]
pub struct Counters {
    /// Payload bytes that the stack has accepted from the application.
    pub sent: AtomicU64,
    /// Payload bytes that the application has received.
    pub received: AtomicU64,
}

impl Counters {
    const fn zero() -> Self {
        Self { sent: AtomicU64::new(0), received: AtomicU64::new(0) }
    }
}

/// Written by the guest, read by the VMM at any time.
#[repr(C)]
#[derive(Debug)]
pub struct Status {
    /// Of all flows since they opened.
    pub now: Counters,
    /// `now` when the measured interval began.
    pub start: Counters,
    /// `now` when it ended.
    pub end: Counters,
    /// Program's clock when it began, nanoseconds.
    pub start_ns: AtomicU64,
    /// Program's clock when it ended, nanoseconds.
    pub end_ns: AtomicU64,
    /// Segments of payload sent more than once since the connections opened, stored before the doorbells that begin and
    /// end the measured interval.
    pub retransmits: AtomicU32,
    /// Time that flows of this program waited for a window of TCP since they opened, all together, in nanoseconds; stored as
    /// `retransmits`. The window is the peer's, or the send buffer; what waits while segments queue on the path is not counted.
    pub window_bound_ns: AtomicU64,
    /// Causes that the interrupt handler has found and the program has not yet taken. The VMM doesn't let the
    /// program sleep while it is not 0: an interrupt between the program's last look and its doorbell is not lost.
    pub interrupt_causes: AtomicU32,
    /// 1 while the interrupt handler runs: the VMM raises no further interrupt until it is 0 again, as an interrupt
    /// controller doesn't before the end-of-interrupt command.
    pub in_service: AtomicU32,
    /// Length of `message`, or 0.
    pub message_length: AtomicU32,
    /// Payload bytes that each flow carried in the measured interval, stored before the doorbell that ends it. Together
    /// they are `end` less `start`. First those that come to the listening end's first port.
    pub flows: [AtomicU64; 2 * MAX_FLOWS],
    /// Last words of a program that panicked, UTF-8.
    pub message: [core::sync::atomic::AtomicU8; MESSAGE_LENGTH],
}

impl Default for Status {
    fn default() -> Self {
        Self {
            now: Counters::zero(),
            start: Counters::zero(),
            end: Counters::zero(),
            start_ns: AtomicU64::new(0),
            end_ns: AtomicU64::new(0),
            retransmits: AtomicU32::new(0),
            window_bound_ns: AtomicU64::new(0),
            interrupt_causes: AtomicU32::new(0),
            in_service: AtomicU32::new(0),
            message_length: AtomicU32::new(0),
            flows: [const { AtomicU64::new(0) }; 2 * MAX_FLOWS],
            message: [const { core::sync::atomic::AtomicU8::new(0) }; MESSAGE_LENGTH],
        }
    }
}
