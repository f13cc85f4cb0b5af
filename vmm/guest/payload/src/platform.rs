//! [`Platform`] of a guest.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::Ordering;

use toll_guest::platform::{DmaRegion, Platform, Registers};
use toll_guest_abi::{BootInfo, Status};

use crate::doorbell;
use crate::registers::AdapterRegisters;

/// A guest's world: identity-mapped memory, the time stamp counter, doorbells.
pub struct GuestPlatform {
    registers: AdapterRegisters,
    status: &'static Status,
    /// Nanoseconds per tick of the time stamp counter, as a fixed-point number of 32 fractional bits.
    ns_per_tick: u64,
    first_tick: u64,
    arena_next: u64,
    arena_end: u64,
}

fn ticks() -> u64 {
    // SAFETY: RDTSC is unprivileged here (CR4.TSD is clear).
    unsafe { _rdtsc() }
}

impl GuestPlatform {
    /// The world that `boot` describes.
    pub fn new(boot: &BootInfo, status: &'static Status) -> Self {
        Self {
            registers: AdapterRegisters::of(boot),
            status,
            ns_per_tick: (1_000_000_000_u64 << 32) / boot.tsc_hz.max(1_000_000_000 >> 8),
            first_tick: ticks(),
            arena_next: boot.arena_base,
            arena_end: boot.arena_base.saturating_add(boot.arena_length),
        }
    }
}

impl Registers for GuestPlatform {
    fn read_register(&mut self, offset: u64, width: u8) -> u32 {
        self.registers.read_register(offset, width)
    }

    fn write_register(&mut self, offset: u64, width: u8, value: u32) {
        self.registers.write_register(offset, width, value);
    }
}

impl Platform for GuestPlatform {
    fn now_ns(&self) -> u64 {
        let elapsed = ticks().wrapping_sub(self.first_tick);
        ((u128::from(elapsed) * u128::from(self.ns_per_tick)) >> 32) as u64
    }

    fn wait(&mut self, timeout_us: u32) {
        doorbell::wait(timeout_us);
    }

    fn phase(&mut self, phase: u32) {
        doorbell::phase(phase);
    }

    fn allocate(&mut self, length: usize, align: usize) -> DmaRegion {
        let align = align.max(1) as u64;
        let address = self.arena_next.next_multiple_of(align);
        let end = address.saturating_add(length as u64);
        assert!(end <= self.arena_end, "guest memory is too small: {length} bytes more are needed");
        self.arena_next = end;
        // Fresh pages of the VMM's mapping are zero, and nothing is ever given back.
        DmaRegion { pointer: address as *mut u8, address, length }
    }

    fn take_interrupt(&mut self) -> u32 {
        self.status.interrupt_causes.swap(0, Ordering::AcqRel)
    }
}
