//! The same-stack engine: the payload program as a thread of this process, on the very machine a guest would have.
//! A register access is a call, waiting is the same function, memory is the same mapping. What differs from a
//! guest is virtualisation alone.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::time::Instant;

use toll_guest::driver::{InterruptHandler, interrupt_handler};
use toll_guest::platform::{DmaRegion, Platform, Registers};
use toll_protocol::report::Failure;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::OpenEngine;
use crate::boot::{Program, boot_info};
use crate::clock::ticks;
use crate::config::EndConfig;
use crate::layout::ARENA;
use crate::machine::{Components, EngineView, Machine, MachineError};
use crate::recording::Recording;

/// Why the program could not be run to its end.
#[derive(Debug, thiserror::Error)]
enum SameStackError {
    #[error("the machine of the same-stack program failed")]
    Machine(#[from] MachineError),
    #[error("the same-stack program panicked: {0}")]
    Panic(String),
    #[error("the same-stack program failed: {0}")]
    Program(String),
    #[error("the program of a test runs in a guest only")]
    NotTraffic,
}

/// The program's world.
struct HostPlatform {
    machine: Machine,
    /// What runs where a guest would be interrupted, if the driver has interrupts.
    handler: Option<InterruptHandler<Self>>,
    arena_next: u64,
    arena_end: u64,
    /// Clock of the program.
    started: Instant,
    started_ticks: u64,
    /// Ticks in the machine, time asleep included.
    machine_ticks: u64,
}

/// The engine: it takes no right, and has nothing open.
pub struct SameStack;

impl OpenEngine for SameStack {
    fn thread_name(&self) -> &'static str {
        "payload"
    }

    fn run(
        &self,
        config: &EndConfig,
        program: &Program,
        components: Components,
    ) -> Result<Box<Recording>, Failure> {
        run_program(config, program, components).map_err(|error| crate::failure(&error, Vec::new()))
    }
}

fn run_program(
    config: &EndConfig,
    program: &Program,
    components: Components,
) -> Result<Box<Recording>, SameStackError> {
    if *program != Program::Traffic {
        return Err(SameStackError::NotTraffic);
    }
    // The program's registers begin at offset 0 here, and its clock is not the time stamp counter.
    let boot = boot_info(config, program, 0, 0);
    let created = Instant::now();
    let shared = components.pages.clone();
    let mut platform = HostPlatform {
        machine: Machine::new(components, created)?,
        handler: interrupt_handler(boot.adapter),
        arena_next: boot.arena_base,
        arena_end: boot.arena_base + boot.arena_length,
        started: created,
        started_ticks: ticks(),
        machine_ticks: 0,
    };
    // The machine can't return an error through the program, so it unwinds the program with it.
    let run = || toll_guest::program::run(&mut platform, &boot, shared.command(), shared.status());
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => Ok(platform.machine.end(0)?),
        Ok(Err(error)) => Err(SameStackError::Program(error.to_string())),
        Err(panic) => Err(unwound(panic)),
    }
}

fn unwound(panic: Box<dyn Any + Send>) -> SameStackError {
    let panic = match panic.downcast::<MachineError>() {
        Ok(error) => return SameStackError::Machine(*error),
        Err(panic) => panic,
    };
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    SameStackError::Panic(text.unwrap_or_else(|| "without a message".into()))
}

impl HostPlatform {
    /// Does `work` on the machine, on the machine's account.
    fn on_machine<T>(&mut self, work: impl FnOnce(&mut Machine) -> Result<T, MachineError>) -> T {
        let entered = ticks();
        self.machine.turn_began(entered);
        let result = work(&mut self.machine);
        let left = ticks();
        self.machine.turn_ended(left);
        self.machine_ticks += left.saturating_sub(entered);
        match result {
            Ok(value) => value,
            Err(error) => resume_unwind(Box::new(error)),
        }
    }

    fn access<T>(&mut self, work: impl FnOnce(&mut Machine) -> Result<T, MachineError>) -> T {
        let value = self.on_machine(|machine| {
            machine.check_stop()?;
            work(machine)
        });
        self.interrupt_if_pending();
        value
    }

    /// Where a guest would be interrupted: on its return from an access.
    fn interrupt_if_pending(&mut self) {
        let Some(handler) = self.handler.filter(|_| self.machine.interrupt_pending()) else { return };
        self.machine.pages().status().in_service.store(1, Ordering::Release);
        let causes = handler(self);
        let status = self.machine.pages().status();
        status.interrupt_causes.fetch_or(causes, Ordering::AcqRel);
        status.in_service.store(0, Ordering::Release);
    }
}

impl Registers for HostPlatform {
    fn read_register(&mut self, offset: u64, width: u8) -> u32 {
        let mut data = [0; 4];
        let width = usize::from(width).min(data.len());
        self.access(|machine| machine.read(offset, &mut data[..width]));
        u32::from_le_bytes(data)
    }

    fn write_register(&mut self, offset: u64, width: u8, value: u32) {
        let data = value.to_le_bytes();
        let width = usize::from(width).min(data.len());
        self.access(|machine| machine.write(offset, &data[..width]));
    }
}

impl Platform for HostPlatform {
    fn now_ns(&self) -> u64 {
        // 584 years fit.
        self.started.elapsed().as_nanos() as u64
    }

    fn wait(&mut self, timeout_us: u32) {
        self.access(|machine| machine.wait(timeout_us));
    }

    fn phase(&mut self, phase: u32) {
        let asleep = self.machine.asleep_ticks();
        let elapsed = ticks().saturating_sub(self.started_ticks);
        let view = EngineView {
            program_ticks: elapsed.saturating_sub(self.machine_ticks),
            model_ticks: self.machine_ticks.saturating_sub(asleep),
            loop_ticks: 0,
            exits: None,
        };
        self.on_machine(|machine| machine.phase(phase, &view));
    }

    fn allocate(&mut self, length: usize, align: usize) -> DmaRegion {
        let address = self.arena_next.next_multiple_of(align.max(1) as u64);
        let end = address.saturating_add(length as u64);
        assert!(end <= self.arena_end, "memory is too small: {length} bytes more are needed");
        self.arena_next = end;
        let slice = self.machine.pages().memory().get_slice(GuestAddress(address), length);
        let pointer = slice.map_or(std::ptr::null_mut(), |slice| slice.ptr_guard_mut().as_ptr());
        assert!(!pointer.is_null() && address >= ARENA, "the arena lies outside of memory");
        DmaRegion { pointer, address, length }
    }

    fn take_interrupt(&mut self) -> u32 {
        self.machine.pages().status().interrupt_causes.swap(0, Ordering::AcqRel)
    }
}
