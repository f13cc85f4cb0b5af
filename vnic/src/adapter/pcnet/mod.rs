//! AMD Am79C970A (PCnet-PCI II, "Lance"): the adapter of the 2001 paper, as a driver sees it.
//!
//! Offsets from the I/O base:
//!
//! ```text
//!         0x00-0x0f  0x10  0x12  0x14   0x16  0x18   0x1c
//!  WIO    APROM      RDP   RAP   RESET  BDP                   16 bits, after H_RESET
//!  DWIO   APROM      RDP         RAP          RESET  BDP      32 bits, after a 32-bit write to 0x10
//!
//!  transmit: RDP <- TDMD -> ring: STP..ENP -> gather -> port -> OWN cleared -> TINT
//!  receive:  port -> scatter into owned descriptors -> filter -> pad, FCS -> OWN cleared -> RINT
//! ```
//!
//! It is the straightforward model on purpose: every access is answered at once, a transmit demand sends every
//! frame of the ring before the write returns, each with one system call, and each raises TINT. Nothing is held back,
//! combined or answered from elsewhere. The demand itself is kept apart from the write that makes it (`demand`),
//! and the model never asks for the time but to measure what a port takes.
//!
//! The work of one access is bounded, whatever a guest writes: 512 frames each way, and one walk round each
//! ring (65536 descriptors at most). What is left of a demand is met by the next [`Adapter::service`].
//!
//! # What is not modelled
//! No collision or deferral happens (but by FCOLL), so MORE, ONE, DEF, LCOL and CSR114 stay 0. There is no EEPROM (BCR19),
//! no MII (BCR32 to BCR34 are of later chips), no bus timing (CSR80, CSR82, CSR100, BCR18 hold what is written) and no poll
//! timer (CSR46 and CSR47 hold what is written): [`Adapter::service`] is the poll. LAPPEN, EADI, RCVALGN and magic packets
//! have no effect. A frame longer than 1518 bytes without FCS raises BABL and is not sent. External loop-back is that of
//! a plug in the socket: nothing reaches the wire.

mod bits;
pub mod combining;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub mod hosted;
mod receive;
mod registers;
mod rings;
#[cfg(test)]
mod tests;
mod transmit;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use toll_protocol::report::FrameCounters;
use toll_protocol::units::MacAddress;
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::adapter::{Adapter, AdapterError, Window};
use crate::gather::{self, PartsMut};
use crate::piece::{Piece, PieceMut};
use crate::port::{Port, PortError, Sent};
use crate::stages::{Mark, Stages};
use bits::{csr0, csr4};
use registers::{Orders, RegisterFile};
use rings::{Descriptor, Outside, Ring, Style};

/// Bytes of the I/O window (BAR0).
const WINDOW: u16 = 0x20;
/// Descriptors of a ring set up by the init block, at most.
const MAX_INIT_RING: u32 = 512;
/// Frames that one access or poll moves each way, at most: the largest ring that an init block makes, full of them.
const MOST_FRAMES: u32 = MAX_INIT_RING;

/// Ethernet header: what a frame has at least.
const HEADER: usize = 14;
/// Shortest frame without FCS (IEEE 802.3, 4.2.3.3); shorter ones are padded.
const MINIMUM: usize = 60;
/// Longest frame without FCS, with an IEEE 802.1Q tag. A longer one is a babble.
const MAXIMUM: usize = 1518;
/// Frame check sequence.
const FCS: usize = 4;

/// What becomes of a frame that has come while the guest has no receive descriptor to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoDescriptor {
    /// It waits in the port, where a host keeps frames for any program that is busy. The wire is as long as the port's
    /// queue, and what overflows that is lost before the chip knows of it.
    #[default]
    Wait,
    /// It is lost, as on the chip, whose FIFO holds no second frame: MISS, and CSR112 counts it.
    Miss,
}

/// The chip.
#[derive(Debug)]
pub struct Pcnet {
    registers: RegisterFile,
    bus: Bus,
    /// The transmit ring is to be looked at: set by a transmit demand, cleared by the look that found its end.
    demand: bool,
    /// Whether demands wait for [`Pcnet::transmit_held`] instead of being met at once.
    holds_back: bool,
    /// Demands that were held back.
    held_back: u64,
    no_descriptor: NoDescriptor,
    /// Level of the interrupt line after the last access, to count its rises.
    line: bool,
}

/// What the chip is connected to, apart from the registers so that rings and frames can be borrowed at once.
struct Bus {
    memory: Arc<GuestMemory>,
    port: Box<dyn Port>,
    counters: FrameCounters,
    stages: Stages,
    /// A loop-back frame with its FCS, on its way from the transmitter to the receiver; empty otherwise.
    looped: Vec<u8>,
    /// Where the end of a frame goes that is longer than the guest's buffers.
    overflow: Box<[u8; 2048]>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Bus {
    /// Sends one frame by the port, on the port's account.
    fn send(&mut self, mark: &mut Mark, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        let Self { port, stages, .. } = self;
        stages.in_port(mark, || port.send(parts))
    }

    /// Receives one frame of the port into `parts`, on the port's account: its length, which is that of `parts` or more
    /// if it did not fit, and its first `N` bytes.
    fn receive<const N: usize>(
        &mut self,
        mark: &mut Mark,
        parts: &mut PartsMut<'_>,
    ) -> Result<Option<(usize, [u8; N])>, PortError> {
        let Self { port, overflow, stages, .. } = self;
        let mut pieces = PartsMut::new();
        for part in parts.iter_mut() {
            // As many as there were.
            pieces.push(part.reborrow());
        }
        // The last piece tells a frame that fits from one that was cut off.
        if pieces.try_push(PieceMut::new(&mut overflow[..])).is_err() {
            return Ok(None);
        }
        let length = stages.in_port(mark, || port.receive(&mut pieces));
        Ok(length?.map(|length| (length, gather::head(&pieces))))
    }
}

/// A register by its name, or what is between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Aprom,
    Rdp,
    Rap,
    Reset,
    Bdp,
    /// Not decoded in this mode, or not with this width.
    Reserved,
}

fn bad(what: &'static str, detail: String) -> AdapterError {
    AdapterError::Guest { adapter: "pcnet", what, detail }
}

fn bad_ring(what: &'static str) -> impl Fn(Outside) -> AdapterError {
    move |Outside { at }| bad(what, format!("{at:#x} is outside of guest memory"))
}

fn bad_buffer(what: &'static str, descriptor: &Descriptor) -> AdapterError {
    let Descriptor { at, base, length, .. } = descriptor;
    bad(what, format!("at {at:#x}: its {length} bytes at {base:#x} are outside of guest memory"))
}

impl Pcnet {
    /// A chip after H_RESET, with `mac` in its APROM.
    pub fn new(memory: GuestMemory, port: Box<dyn Port>, mac: MacAddress) -> Self {
        let bus = Bus {
            memory: Arc::new(memory),
            port,
            counters: FrameCounters::default(),
            stages: Stages::default(),
            looped: Vec::new(),
            overflow: Box::new([0; 2048]),
        };
        let no_descriptor = NoDescriptor::default();
        let registers = RegisterFile::new(mac);
        Self { registers, bus, demand: false, holds_back: false, held_back: 0, no_descriptor, line: false }
    }

    /// The same chip, which leaves what it is to transmit in the ring until `transmit_held` or
    /// [`Adapter::service`]: for send combining ([`combining`]).
    #[must_use]
    pub fn holding_back(mut self) -> Self {
        self.holds_back = true;
        self
    }

    /// How often the guest has asked for a transmission that is held back.
    fn held_back(&self) -> u64 {
        self.held_back
    }

    /// Takes what the port has for the guest, and leaves held back what is. Whether something came.
    fn look(&mut self) -> Result<bool, AdapterError> {
        if !self.holds_back {
            return self.service();
        }
        let result = self.receive();
        self.concluded(result)
    }

    /// Transmits what is held back.
    fn transmit_held(&mut self) -> Result<(), AdapterError> {
        let result = self.meet_demand();
        self.concluded(result)
    }

    /// The same chip, which does so with a frame that finds no descriptor.
    #[must_use]
    pub fn with_no_descriptor(mut self, policy: NoDescriptor) -> Self {
        self.no_descriptor = policy;
        self
    }

    /// Plugs the cable in or out: BCR4 LEDOUT (0x80C0 when the link is up, 0x00C0 when not). Without a link a frame is lost
    /// with LCAR and CERR, and nothing is received. The link is up after H_RESET.
    pub fn set_link(&mut self, up: bool) {
        self.registers.set_link(up);
    }

    const fn register(&self, offset: u64) -> Register {
        match (offset, self.registers.dwio()) {
            (0..=0xf, _) => Register::Aprom,
            (0x10, _) => Register::Rdp,
            (0x12, false) | (0x14, true) => Register::Rap,
            (0x14, false) | (0x18, true) => Register::Reset,
            (0x16, false) | (0x1c, true) => Register::Bdp,
            _ => Register::Reserved,
        }
    }

    /// The register at `offset` if the width of the access suits it.
    const fn decode(&self, offset: u64, width: usize) -> Register {
        match self.register(offset) {
            Register::Aprom if offset as usize + width <= 16 => Register::Aprom,
            Register::Aprom => Register::Reserved,
            register if width == if self.registers.dwio() { 4 } else { 2 } => register,
            _ => Register::Reserved,
        }
    }

    fn obey(&mut self, orders: Orders) -> Result<(), AdapterError> {
        if orders.initialise {
            self.initialise()?;
        }
        if orders.start {
            self.registers.start();
        }
        // The chip polls its transmit ring as soon as it runs.
        let polls = orders.start && self.registers.csr4() & csr4::DPOLL == 0;
        self.demand |= orders.transmit || polls;
        // A chip that is started or reset has no frames that could wait for others.
        if self.holds_back && !orders.start && !orders.initialise {
            if orders.transmit {
                self.held_back += 1;
                self.bus.stages.asked();
            }
            return Ok(());
        }
        self.meet_demand()
    }

    /// Transmits if there is a demand. Whatever holds frames back stands between the write that makes a demand and this.
    fn meet_demand(&mut self) -> Result<(), AdapterError> {
        if std::mem::take(&mut self.demand) {
            self.demand = self.transmit()?;
            if !self.demand {
                self.bus.stages.none_held();
            }
        }
        Ok(())
    }

    /// INIT: reads the init block.
    ///
    /// ```text
    /// 32-bit, 28 bytes: mode16 rlen<<4 tlen<<4 padr[6] - - ladrf[8] rdra32 tdra32
    /// 16-bit, 24 bytes: mode16 padr[6] ladrf[8] rdra24|rlen<<29 tdra24|tlen<<29
    /// ```
    fn initialise(&mut self) -> Result<(), AdapterError> {
        let layout = self.registers.layout();
        let at = self.registers.init_block();
        let mut block = [0_u8; 28];
        let (length, mac_at, filter_at, rings_at) =
            if layout.style == Style::Lance16 { (24, 2, 8, 16) } else { (28, 4, 12, 20) };
        self.bus.memory.read_slice(&mut block[..length], GuestAddress(u64::from(at))).map_err(|_| {
            bad("init block", format!("its {length} bytes at {at:#x} are outside of guest memory"))
        })?;
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        let (receive, transmit) = (word(rings_at), word(rings_at + 4));
        let ring = |address: u32, encoded: u32| Ring {
            // The chip takes the low bits of a ring's address as 0.
            base: address & !(layout.style.size() - 1),
            length: (1 << encoded.min(9)).min(MAX_INIT_RING),
            index: 0,
        };
        if layout.style == Style::Lance16 {
            let lance = |word: u32| ring(layout.high_address | word & 0x00ff_ffff, word >> 29);
            self.registers.receive = lance(receive);
            self.registers.transmit = lance(transmit);
            self.registers.set_encoded_lengths((receive >> 29) as u8, (transmit >> 29) as u8);
        } else {
            self.registers.receive = ring(receive, u32::from(block[2] >> 4));
            self.registers.transmit = ring(transmit, u32::from(block[3] >> 4));
            self.registers.set_encoded_lengths(block[2] >> 4, block[3] >> 4);
        }
        self.registers.set_mode(u16::from_le_bytes([block[0], block[1]]));
        let mut address = [0; 6];
        address.copy_from_slice(&block[mac_at..mac_at + 6]);
        self.registers.set_physical_address(address);
        let filter = u64::from(word(filter_at + 4)) << 32 | u64::from(word(filter_at));
        self.registers.set_logical_filter(filter);
        self.registers.raise(csr0::IDON);
        Ok(())
    }

    const fn running(&self, which: u16) -> bool {
        self.registers.csr0() & which != 0 && !self.registers.suspended()
    }

    /// Follows the interrupt line and counts its rises.
    fn settle(&mut self) {
        let line = self.registers.interrupt_line();
        if line && !self.line {
            self.bus.counters.interrupts += 1;
        }
        self.line = line;
    }

    /// Counts a fault of the guest and leaves the line consistent.
    fn concluded<T>(&mut self, result: Result<T, AdapterError>) -> Result<T, AdapterError> {
        if let Err(AdapterError::Guest { .. }) = &result {
            self.bus.counters.guest_errors += 1;
            // What a driver would see of a bus fault.
            self.registers.raise(csr0::MERR);
        }
        self.settle();
        result
    }
}

impl Adapter for Pcnet {
    fn window(&self) -> Window {
        Window::Pio(WINDOW)
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AdapterError> {
        let value = match self.decode(offset, data.len()) {
            Register::Aprom => {
                for (index, byte) in data.iter_mut().enumerate() {
                    *byte = self.registers.read_aprom(offset as usize + index);
                }
                return Ok(());
            }
            Register::Rdp => self.registers.read_csr(),
            Register::Rap => self.registers.read_rap(),
            Register::Bdp => self.registers.read_bcr(),
            Register::Reset => {
                self.registers.soft_reset();
                self.settle();
                0
            }
            Register::Reserved => {
                // Nothing drives the bus.
                data.fill(0xff);
                self.bus.counters.guest_errors += 1;
                return Ok(());
            }
        };
        for (byte, value) in data.iter_mut().zip(u32::from(value).to_le_bytes()) {
            *byte = value;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AdapterError> {
        if offset == 0x10 && data.len() == 4 {
            self.registers.enter_dwio();
        }
        let value = || u16::from_le_bytes([data[0], data[1]]);
        match self.decode(offset, data.len()) {
            Register::Aprom => {
                for (index, byte) in data.iter().enumerate() {
                    self.registers.write_aprom(offset as usize + index, *byte);
                }
            }
            Register::Rdp => {
                let orders = self.registers.write_csr(value());
                let result = self.obey(orders);
                return self.concluded(result);
            }
            Register::Rap => self.registers.write_rap(value()),
            Register::Bdp => self.registers.write_bcr(value()),
            // Only a read resets.
            Register::Reset => {}
            Register::Reserved => self.bus.counters.guest_errors += 1,
        }
        Ok(())
    }

    fn service(&mut self) -> Result<bool, AdapterError> {
        // Without DPOLL the chip looks at its transmit ring by itself.
        self.demand |= self.registers.csr4() & csr4::DPOLL == 0;
        let result = self.meet_demand().and_then(|()| self.receive());
        // With frames left in the ring the guest is not to sleep before the next poll.
        self.concluded(result).map(|news| news || self.line || self.demand)
    }

    fn posts(&self, offset: u64, width: usize) -> bool {
        // RAP has memory semantics: what is written there nothing sees before the next access of another register. In
        // word mode RAP is at 0x12, in double-word mode at 0x14, where the other mode's RESET ignores writes.
        matches!((offset, width), (0x12, 2) | (0x14, 4))
    }

    fn can_receive(&self) -> bool {
        let ring = &self.registers.receive;
        // Frames that are lost anyway have to be taken off the port, too.
        let loses = !self.registers.link() || self.no_descriptor == NoDescriptor::Miss;
        self.running(csr0::RXON)
            && (loses || matches!(ring.owned(0, self.registers.layout(), &self.bus.memory), Ok(Some(_))))
    }

    fn interrupt(&self) -> bool {
        self.line
    }

    fn counters(&self) -> FrameCounters {
        self.bus.port.lost().beside(self.bus.counters)
    }

    fn register_name(&self, offset: u64) -> &'static str {
        match self.register(offset) {
            Register::Aprom => "aprom",
            Register::Rdp => "rdp",
            Register::Rap => "rap",
            Register::Reset => "reset",
            Register::Bdp => "bdp",
            Register::Reserved => "reserved",
        }
    }

    fn port_fd(&self) -> Option<BorrowedFd<'_>> {
        self.bus.port.fd()
    }

    fn with_stages(&mut self, act: &mut dyn FnMut(&mut Stages)) {
        act(&mut self.bus.stages);
    }
}
