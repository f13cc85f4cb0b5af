//! The engine of KVM guests, whatever they run: creates the guest on the calling thread, and runs its vCPU until it ends.
//!
//! ```text
//!          +--------------------------- interrupt, if the line is high ---+
//!          v                                                              |
//! enter KVM_RUN --exit--> decode --> adapter / WAIT / PHASE / END --> account
//!          ^                |                                             |
//!          +-- signal ------+--> fault: last words            END: Recording
//! ```

use std::os::fd::AsFd;

use toll_protocol::report::Failure;

use super::OpenEngine;
use crate::boot::Program;
use crate::bus::{Bus, Device, Space};
use crate::clock::{Timebase, ticks};
use crate::config::EndConfig;
use crate::exits::{Cause, Exits};
use crate::image::ImageError;
use crate::kvm::{self, Entry, Exit, Fault, Kvm, KvmCounts, KvmError, Postbox, Vcpu, Vm};
use crate::layout::INTERRUPT_VECTOR;
use crate::machine::{Components, EngineView, Machine, MachineError};
use crate::memory::{MemoryError, SharedPages};
use crate::recording::Recording;

/// Why a guest could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// KVM.
    #[error("the guest could not be run")]
    Kvm(#[from] KvmError),
    /// Its program.
    #[error("the guest's program could not be loaded")]
    Image(#[from] ImageError),
    /// Its memory.
    #[error("the guest's memory could not be set up")]
    Memory(#[from] MemoryError),
    /// The machine that it runs on.
    #[error("the guest failed")]
    Machine(#[from] MachineError),
    /// It faulted.
    #[error("the guest faulted at rip {:#x}: {_0}", _0.rip)]
    Fault(Fault),
    /// KVM can't run it on.
    #[error("the guest stopped at {}: {what}", place(*.rip))]
    Stopped {
        /// KVM's reason.
        what: String,
        /// Instruction pointer, unless KVM has lost it.
        rip: Option<u64>,
    },
    /// It accessed what no device decodes.
    #[error("the guest accessed {space:?} address {address:#x}, {length} bytes: no device is there")]
    NoDevice {
        /// Which address space.
        space: Space,
        /// The address.
        address: u64,
        /// How many bytes.
        length: usize,
    },
}

fn place(rip: Option<u64>) -> String {
    rip.map_or_else(|| "an instruction that KVM does not tell".into(), |rip| format!("rip {rip:#x}"))
}

/// What is known of a guest at any time.
struct Guest {
    vcpu: Vcpu,
    /// Writes that did not exit.
    postbox: Option<Postbox>,
    bus: Bus,
    machine: Machine,
    exits: Exits,
    /// Ticks between the end of an exit and the next entry.
    loop_ticks: u64,
    started: Timebase,
}

/// A kind of KVM guest: what is in its memory when it begins.
pub trait Load: Send {
    /// Puts the program of `config` into the memory of `pages`, and says how the guest begins.
    ///
    /// # Errors
    /// [`GuestError`].
    fn load(
        &self,
        config: &EndConfig,
        program: &Program,
        pages: &SharedPages,
        platform: Platform,
    ) -> Result<Entry, GuestError>;
}

/// What a guest may be told of the machine it runs on.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// Where the adapter's registers begin.
    pub adapter_base: u64,
    /// Frequency of the time stamp counter in Hz.
    pub tsc_hz: u64,
}

/// The engine of a kind of guest.
pub struct KvmGuest<L> {
    kvm: Kvm,
    kind: L,
}

impl<L: Load> KvmGuest<L> {
    /// With /dev/kvm open.
    ///
    /// # Errors
    /// [`KvmError`], with what to do.
    pub fn open(kind: L) -> Result<Self, KvmError> {
        Ok(Self { kvm: kvm::open()?, kind })
    }
}

impl<L: Load> OpenEngine for KvmGuest<L> {
    fn thread_name(&self) -> &'static str {
        "vcpu0"
    }

    /// A failure's last words are the registers and the last exits, as far as there are any.
    fn run(
        &self,
        config: &EndConfig,
        program: &Program,
        components: Components,
    ) -> Result<Box<Recording>, Failure> {
        let mut guest = Guest::create(self, config, program, components)
            .map_err(|error| crate::failure(&error, Vec::new()))?;
        guest.run().map_err(|error| {
            let words = guest.last_words();
            crate::failure(&error, words)
        })
    }
}

impl Guest {
    fn create(
        engine: &KvmGuest<impl Load>,
        config: &EndConfig,
        program: &Program,
        components: Components,
    ) -> Result<Self, GuestError> {
        let started = Timebase::now();
        let Components { adapter, pages, events, io, .. } = &components;
        let vm = Vm::new(&engine.kvm, pages.memory().clone())?;
        let vcpu = vm.vcpu()?;
        let bus = Bus::new(adapter.window());
        let posted = bus.posted(&**adapter);
        let postbox = (!posted.is_empty()).then(|| vm.postbox(&vcpu, posted.into_iter())).transpose()?;
        if let Some((register, kick)) = io.as_ref().and_then(|io| io.notify.as_ref()) {
            vm.notifies(bus.adapter_base() + register, kick.as_fd())?;
        }
        let platform = Platform { adapter_base: bus.adapter_base(), tsc_hz: vcpu.tsc_hz()? };
        vm.enter(&vcpu, &engine.kind.load(config, program, pages, platform)?)?;
        events.signals().set_vcpu(vcpu.kicker());
        Ok(Self {
            vcpu,
            postbox,
            bus,
            machine: Machine::new(components, vm.created())?,
            exits: Exits::default(),
            loop_ticks: 0,
            started,
        })
    }

    fn run(&mut self) -> Result<Box<Recording>, GuestError> {
        // Set by accesses of the guest only: an interrupt elsewhere could hit code that has a red zone (see
        // payload/src/gate.rs), and one that was just raised has not been seen by its handler yet.
        let mut interruptible = false;
        let mut left = ticks();
        loop {
            self.machine.check_stop()?;
            if interruptible {
                // One that can't be taken now waits for the next access. WAIT doesn't sleep while the line is high.
                if self.machine.interrupt_pending() && self.vcpu.can_take_interrupt() {
                    self.vcpu.interrupt(INTERRUPT_VECTOR);
                }
            }
            let entered = ticks();
            self.loop_ticks += entered.saturating_sub(left);
            self.machine.turn_ended(entered);
            let exit = self.vcpu.run()?;
            let now = ticks();
            self.machine.turn_began(now);
            let running = now.saturating_sub(entered);
            // They came before whatever this exit is.
            if let Some(postbox) = &mut self.postbox {
                while let Some(posted) = postbox.take()? {
                    let (port, data) = (u64::from(posted.port), posted.data());
                    match self.bus.decode(Space::Pio, port, data.len()) {
                        Some((Device::Adapter, offset)) => self.machine.posted(offset, data)?,
                        _ => {
                            let (space, length) = (Space::Pio, data.len());
                            return Err(GuestError::NoDevice { space, address: port, length });
                        }
                    }
                }
            }
            let mut access =
                Access { bus: &self.bus, machine: &mut self.machine, exits: &mut self.exits, now, running };
            let asleep = access.machine.asleep_ticks();
            let (cause, ended) = match exit {
                Exit::PioWrite(port, data) => access.write(Space::Pio, u64::from(port), data)?,
                Exit::PioRead(port, data) => access.read(Space::Pio, u64::from(port), data)?,
                Exit::MmioWrite(address, data) => access.write(Space::Mmio, address, data)?,
                Exit::MmioRead(address, data) => access.read(Space::Mmio, address, data)?,
                Exit::Signal => {
                    access.machine.interrupted()?;
                    access.count(Cause::Signal)
                }
                Exit::Fault { what } => {
                    access.count(Cause::Fault);
                    let rip = self.vcpu.registers().ok().and_then(|registers| registers.rip);
                    return Err(GuestError::Stopped { what, rip });
                }
            };
            match ended {
                Doorbell::None => {}
                Doorbell::Phase(announced) => {
                    let counts = self.vcpu.counts();
                    self.announce(announced, counts)?;
                }
                Doorbell::End(value) => return Ok(self.machine.end(value)?),
                Doorbell::Fault { port, length } => {
                    let fault = self.vcpu.registers()?.fault;
                    // The program may write there by itself.
                    let none = GuestError::NoDevice { space: Space::Pio, address: port, length };
                    return Err(fault.map_or(none, GuestError::Fault));
                }
            }
            let asleep = self.machine.asleep_ticks().saturating_sub(asleep);
            left = ticks();
            self.exits.leave(cause, left.saturating_sub(now).saturating_sub(asleep));
            interruptible = cause != Cause::Signal;
        }
    }

    fn announce(&mut self, phase: u32, counts: KvmCounts) -> Result<(), MachineError> {
        let view = EngineView {
            program_ticks: self.exits.running_ticks(),
            model_ticks: self.exits.handling_ticks(),
            loop_ticks: self.loop_ticks,
            exits: Some((&self.exits, counts)),
        };
        self.machine.phase(phase, &view)
    }

    fn last_words(&self) -> Vec<String> {
        let mut words: Vec<String> =
            self.machine.pages().message().into_iter().map(|words| format!("program: {words}")).collect();
        words.extend(self.exits.last_words(Timebase::now().nanoseconds_per_tick_since(&self.started)));
        match self.vcpu.registers() {
            Ok(registers) => words.extend(registers.lines),
            Err(error) => words.push(format!("registers could not be read: {error}")),
        }
        words
    }
}

/// What an access asks of the loop itself.
enum Doorbell {
    None,
    Phase(u32),
    End(u32),
    Fault {
        /// Where it was told.
        port: u64,
        /// In so many bytes.
        length: usize,
    },
}

/// One exit while it is answered.
struct Access<'a> {
    bus: &'a Bus,
    machine: &'a mut Machine,
    exits: &'a mut Exits,
    now: u64,
    running: u64,
}

impl Access<'_> {
    fn count(&mut self, cause: Cause) -> (Cause, Doorbell) {
        self.exits.enter(cause, 0, 0, self.now, self.running);
        (cause, Doorbell::None)
    }

    fn write(&mut self, space: Space, address: u64, data: &[u8]) -> Result<(Cause, Doorbell), GuestError> {
        let value = value(data);
        let decoded = self.bus.decode(space, address, data.len());
        let cause = match (decoded, space) {
            (Some((Device::Adapter, offset)), Space::Pio) => {
                Cause::PioWrite(self.machine.adapter().register_name(offset))
            }
            (Some((Device::Adapter, offset)), Space::Mmio) => {
                Cause::MmioWrite(self.machine.adapter().register_name(offset))
            }
            (Some((Device::Wait, _)), _) => Cause::Wait,
            (Some((Device::Phase, _)), _) => Cause::Phase,
            (Some((Device::End, _)), _) => Cause::End,
            (Some((Device::Faults, _)), _) => Cause::Fault,
            (None, Space::Pio) => Cause::PioWrite("no device"),
            (None, Space::Mmio) => Cause::MmioWrite("no device"),
        };
        self.exits.enter(cause, address, value, self.now, self.running);
        let Some((device, offset)) = decoded else {
            return Err(GuestError::NoDevice { space, address, length: data.len() });
        };
        // Doorbells are 32 bits wide, which is what a value holds.
        let word = value as u32;
        let doorbell = match device {
            Device::Adapter => {
                self.machine.write(offset, data)?;
                Doorbell::None
            }
            Device::Wait => {
                self.machine.wait(word)?;
                Doorbell::None
            }
            Device::Phase => Doorbell::Phase(word),
            Device::End => Doorbell::End(word),
            Device::Faults => Doorbell::Fault { port: address, length: data.len() },
        };
        Ok((cause, doorbell))
    }

    fn read(&mut self, space: Space, address: u64, data: &mut [u8]) -> Result<(Cause, Doorbell), GuestError> {
        let decoded = match self.bus.decode(space, address, data.len()) {
            Some((Device::Adapter, offset)) => Some(offset),
            // Doorbells can't be read.
            _ => None,
        };
        let name = decoded.map_or("no device", |offset| self.machine.adapter().register_name(offset));
        let cause = match space {
            Space::Pio => Cause::PioRead(name),
            Space::Mmio => Cause::MmioRead(name),
        };
        self.exits.enter(cause, address, 0, self.now, self.running);
        let offset = decoded.ok_or(GuestError::NoDevice { space, address, length: data.len() })?;
        self.machine.read(offset, data)?;
        Ok((cause, Doorbell::None))
    }
}

/// The little-endian value of up to 8 bytes; of a string instruction's data, its beginning.
fn value(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = data.len().min(bytes.len());
    bytes[..length].copy_from_slice(&data[..length]);
    u64::from_le_bytes(bytes)
}
