//! The payload program on a thread of a test: register accesses are calls into the adapter model, memory is a
//! mapping shared with it, interrupts are delivered where a guest would take them.

pub mod finishing;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use toll_guest::driver::{InterruptHandler, interrupt_handler};
use toll_guest::pattern;
use toll_guest::platform::{DmaRegion, Platform, Registers};
use toll_guest::program::{self, ProgramError};
use toll_guest_abi::{
    BootInfo, Command, Counters, MAGIC, MAX_FLOWS, Status, Traffic, VERSION, adapter, congestion, direction,
    kind, open, virtio_net,
};
use toll_protocol::report::FrameCounters;
use toll_protocol::trial::VirtioNetSwitches;
use toll_protocol::units::MacAddress;
use toll_vnic::GuestMemory;
use toll_vnic::adapter::Adapter;
use toll_vnic::adapter::pcnet::Pcnet;
use toll_vnic::adapter::virtio_net::VirtioNet;
use toll_vnic::piece::{Piece, PieceMut};
use toll_vnic::port::{Framing, Port, PortError, Sent};
use vm_memory::{GuestAddress, GuestMemoryBackend};

pub const PCNET: u32 = adapter::PCNET;
pub const VIRTIO_NET: u32 = adapter::VIRTIO_NET;
pub const PORT: u16 = 5201;
/// For a wire that loses frames: longer than the row of retransmissions after which a byte of a test has come.
pub const LONG_PATIENCE: Duration = Duration::from_secs(20);

/// One end of a transfer.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub adapter: u32,
    /// One of [`direction`].
    pub direction: u32,
    pub flows: u32,
    /// One of [`congestion`].
    pub congestion_control: u32,
    pub listens: bool,
    /// Last byte of 10.9.0.x and of the MAC address.
    pub host: u8,
    pub peer: u8,
    pub write_size: u32,
    pub mtu: u32,
    pub arena: u64,
    pub warm_up: Duration,
    pub duration: Duration,
    pub patience: Duration,
    pub switches: VirtioNetSwitches,
    /// Whether each received byte is looked at, whatever the build profile: a measurement leaves that out.
    pub verifies: bool,
}

impl End {
    pub fn sender(adapter: u32) -> Self {
        Self {
            adapter,
            direction: direction::SEND,
            flows: 1,
            congestion_control: congestion::CUBIC,
            listens: false,
            host: 1,
            peer: 2,
            write_size: 10_000,
            mtu: 1500,
            arena: 4 << 20,
            warm_up: Duration::from_millis(20),
            duration: Duration::from_millis(200),
            patience: Duration::from_secs(3),
            switches: VirtioNetSwitches::default(),
            verifies: true,
        }
    }

    pub fn receiver(adapter: u32) -> Self {
        Self { direction: direction::RECEIVE, listens: true, host: 2, peer: 1, ..Self::sender(adapter) }
    }

    pub fn mac(&self) -> MacAddress {
        MacAddress([0x52, 0x54, 0, 0, 0, self.host])
    }

    pub fn boot(&self) -> BootInfo {
        BootInfo {
            magic: MAGIC,
            version: VERSION,
            adapter: self.adapter,
            adapter_base: 0,
            tsc_hz: 0,
            arena_base: 0x10000,
            arena_length: self.arena,
            warm_up_ns: self.warm_up.as_nanos() as u64,
            duration_ns: self.duration.as_nanos() as u64,
            patience_ns: self.patience.as_nanos() as u64,
            traffic: Traffic {
                kind: kind::STREAM,
                direction: self.direction,
                flows: self.flows,
                write_size: self.write_size,
                congestion_control: self.congestion_control,
                reserved: 0,
            },
            open: if self.listens { open::LISTEN } else { open::CONNECT },
            mtu: self.mtu,
            address: [10, 9, 0, self.host],
            prefix: 24,
            gateway: [0; 4],
            queue_pairs: self.switches.queue_pairs.into(),
            listen_port: PORT,
            mac: self.mac().0,
            random_seed: 0x5eed + u64::from(self.host),
            switches: self.switch_bits(),
        }
    }

    fn switch_bits(&self) -> u64 {
        let VirtioNetSwitches {
            checksum_offload,
            tso,
            mergeable_buffers,
            event_index,
            io_thread,
            control_queue,
            ..
        } = self.switches;
        let bits = [
            (checksum_offload, virtio_net::CHECKSUM_OFFLOAD),
            (tso, virtio_net::TSO),
            (mergeable_buffers, virtio_net::MERGEABLE_BUFFERS),
            (event_index, virtio_net::EVENT_INDEX),
            (io_thread, virtio_net::IO_THREAD),
            (control_queue, virtio_net::CONTROL_QUEUE),
        ];
        bits.into_iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit)
    }

    /// Runs the program on this thread, on `port`.
    pub fn run(&self, port: Box<dyn Port>) -> (Result<(), ProgramError>, Outcome) {
        self.run_behind(vec![port], |adapter| adapter)
    }

    /// The same on a port for each queue pair, with something around the adapter.
    pub fn run_behind(
        &self,
        ports: Vec<Box<dyn Port>>,
        around: impl FnOnce(Box<dyn Adapter>) -> Box<dyn Adapter>,
    ) -> (Result<(), ProgramError>, Outcome) {
        let mut platform = HostPlatform::behind(self, ports, around);
        let (boot, command, status) = (self.boot(), Command::default(), Status::default());
        command.peer_address.store(u32::from_ne_bytes([10, 9, 0, self.peer]), Ordering::Relaxed);
        command.peer_port.store(PORT.into(), Ordering::Relaxed);
        command.start.store(1, Ordering::Release);
        let result = program::run(&mut platform, &boot, &command, &status);
        let now = carried(&status.now);
        let (start, end) = (carried(&status.start), carried(&status.end));
        let measured = Carried {
            sent: end.sent.saturating_sub(start.sent),
            received: end.received.saturating_sub(start.received),
        };
        let bytes = |carried: Carried| {
            if self.direction == direction::SEND { carried.sent } else { carried.received }
        };
        let time = |field: &AtomicU64| Duration::from_nanos(field.load(Ordering::Relaxed));
        let outcome = Outcome {
            bytes: bytes(now),
            measured: bytes(measured),
            carried: now,
            measured_both_ways: measured,
            flows: status.flows.iter().map(|flow| flow.load(Ordering::Relaxed)).collect(),
            interval: time(&status.end_ns).saturating_sub(time(&status.start_ns)),
            verified: platform.verified.iter().sum(),
            phases: platform.phases.clone(),
            counters: platform.adapter.counters(),
            waits: platform.waits,
            retransmits: status.retransmits.load(Ordering::Relaxed),
            window_bound: time(&status.window_bound_ns),
            accesses: platform.accesses.clone(),
        };
        (result, outcome)
    }
}

/// Bytes of payload, each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    pub sent: u64,
    pub received: u64,
}

fn carried(counters: &Counters) -> Carried {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Carried { sent: load(&counters.sent), received: load(&counters.received) }
}

/// What a program did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of the direction that it is about: received by one that does both.
    pub bytes: u64,
    /// The same in the interval.
    pub measured: u64,
    pub carried: Carried,
    pub measured_both_ways: Carried,
    /// What each flow carried in the interval; those that there are not, nothing.
    pub flows: Vec<u64>,
    pub interval: Duration,
    /// Received bytes that were what the sender's pattern has at their place.
    pub verified: u64,
    pub phases: Vec<u32>,
    pub counters: FrameCounters,
    pub waits: u64,
    /// When the measured interval ended.
    pub retransmits: u32,
    /// The same: how long flows had waited for a window.
    pub window_bound: Duration,
    /// Register accesses by direction and offset.
    pub accesses: BTreeMap<(Access, u64), u64>,
}

impl Outcome {
    pub fn bits_per_second(&self) -> f64 {
        self.measured as f64 * 8.0 / self.interval.as_secs_f64()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    Read,
    Write,
}

pub struct HostPlatform {
    pub adapter: Box<dyn Adapter>,
    pub memory: GuestMemory,
    epoch: Instant,
    free: u64,
    end: u64,
    handler: Option<InterruptHandler<Self>>,
    in_interrupt: bool,
    pub causes: u32,
    write_size: usize,
    check: bool,
    /// Of each flow.
    verified: Vec<u64>,
    phases: Vec<u32>,
    waits: u64,
    pub accesses: BTreeMap<(Access, u64), u64>,
    /// Each access with the value read or written, once somebody listens.
    pub transcript: Option<Vec<(Access, u64, u32)>>,
}

impl HostPlatform {
    pub fn new(end: &End, port: Box<dyn Port>) -> Self {
        Self::behind(end, vec![port], |adapter| adapter)
    }

    pub fn behind(
        end: &End,
        mut ports: Vec<Box<dyn Port>>,
        around: impl FnOnce(Box<dyn Adapter>) -> Box<dyn Adapter>,
    ) -> Self {
        let boot = end.boot();
        let arena_end = boot.arena_base + boot.arena_length;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), arena_end as usize)]).unwrap();
        let adapter: Box<dyn Adapter> = if end.adapter == PCNET {
            Box::new(Pcnet::new(memory.clone(), ports.pop().expect("a port"), end.mac()))
        } else {
            let device = VirtioNet::new(memory.clone(), ports, end.mac(), end.mtu as u16, end.switches);
            let mut device = Box::new(device.unwrap());
            // By `wait`.
            device.watch(true).unwrap();
            device
        };
        Self {
            adapter: around(adapter),
            memory,
            epoch: Instant::now(),
            free: boot.arena_base,
            end: arena_end,
            handler: interrupt_handler(end.adapter),
            in_interrupt: false,
            causes: 0,
            write_size: end.write_size as usize,
            check: end.verifies,
            verified: vec![0; 2 * MAX_FLOWS],
            phases: Vec::new(),
            waits: 0,
            accesses: BTreeMap::new(),
            transcript: None,
        }
    }

    fn count(&mut self, access: Access, offset: u64, value: u32) {
        *self.accesses.entry((access, offset)).or_default() += 1;
        if let Some(transcript) = &mut self.transcript {
            transcript.push((access, offset, value));
        }
    }

    fn deliver_interrupts(&mut self) {
        // A driver that polls suppresses interrupts.
        let Some(handler) = self.handler else { return };
        while self.adapter.interrupt() && !self.in_interrupt {
            self.in_interrupt = true;
            self.causes |= handler(self);
            self.in_interrupt = false;
        }
    }
}

impl Registers for HostPlatform {
    fn read_register(&mut self, offset: u64, width: u8) -> u32 {
        let mut data = [0; 4];
        self.adapter.read(offset, &mut data[..usize::from(width)]).unwrap();
        let value = u32::from_le_bytes(data);
        self.count(Access::Read, offset, value);
        self.deliver_interrupts();
        value
    }

    fn write_register(&mut self, offset: u64, width: u8, value: u32) {
        self.count(Access::Write, offset, value);
        self.adapter.write(offset, &value.to_le_bytes()[..usize::from(width)]).unwrap();
        self.deliver_interrupts();
    }
}

impl Platform for HostPlatform {
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn wait(&mut self, timeout_us: u32) {
        // Nothing that this process runs takes this long: a program that hangs fails its test.
        assert!(self.epoch.elapsed() < Duration::from_secs(60), "the program hangs");
        self.waits += 1;
        if !self.adapter.service().unwrap() && self.causes == 0 && timeout_us > 0 {
            let timeout = Duration::from_micros(timeout_us.into()).min(Duration::from_secs(5));
            let fd = self.adapter.port_fd().filter(|_| self.adapter.can_receive());
            let mut fds: Vec<_> = fd.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).into_iter().collect();
            match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => resume_unwind(Box::new(error)),
            }
            self.adapter.service().unwrap();
        }
        self.deliver_interrupts();
    }

    fn phase(&mut self, phase: u32) {
        self.phases.push(phase);
    }

    fn allocate(&mut self, length: usize, align: usize) -> DmaRegion {
        let address = self.free.next_multiple_of(align as u64);
        self.free = address + length as u64;
        assert!(self.free <= self.end, "the program asks for more than its arena has");
        let slice = self.memory.get_slice(GuestAddress(address), length).unwrap();
        DmaRegion { pointer: slice.ptr_guard_mut().as_ptr(), address, length }
    }

    fn take_interrupt(&mut self) -> u32 {
        std::mem::take(&mut self.causes)
    }

    fn received(&mut self, flow: usize, bytes: &[u8]) {
        if !self.check {
            return;
        }
        let verified = &mut self.verified[flow];
        for byte in bytes {
            assert_eq!(*byte, pattern(*verified as usize % self.write_size), "flow {flow} at {verified}");
            *verified += 1;
        }
    }
}

/// xorshift64 (Marsaglia 2003).
fn one_in(count: u64, state: &mut u64) -> bool {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.is_multiple_of(count)
}

/// A port that changes a bit of one long frame sent in so many, past its headers.
pub struct Damaging<P> {
    pub port: P,
    pub one_in: u64,
    pub state: u64,
    pub damaged: Arc<AtomicU64>,
}

impl<P: Port> Port for Damaging<P> {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        let mut frame = toll_vnic::piece::collect(parts);
        if frame.len() > 1000 && one_in(self.one_in, &mut self.state) {
            frame[700] ^= 0x10;
            self.damaged.fetch_add(1, Ordering::Relaxed);
        }
        self.port.send(&[Piece::new(&frame)])
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        self.port.receive(parts)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }
}

/// A port that loses one frame in so many, each way, by a generator with a seed.
pub struct Lossy<P> {
    pub port: P,
    pub one_in: u64,
    pub state: u64,
    pub lost: Arc<AtomicU64>,
}

impl<P> Lossy<P> {
    fn loses(&mut self) -> bool {
        let loses = one_in(self.one_in, &mut self.state);
        self.lost.fetch_add(loses.into(), Ordering::Relaxed);
        loses
    }
}

impl<P: Port> Port for Lossy<P> {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        if self.loses() { Ok(Sent::Taken) } else { self.port.send(parts) }
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        loop {
            let length = self.port.receive(parts)?;
            if length.is_none() || !self.loses() {
                return Ok(length);
            }
        }
    }

    fn framing(&self) -> Framing {
        self.port.framing()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }
}
