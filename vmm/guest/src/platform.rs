//! The seam between the payload program and the world below it.

/// An adapter's registers: all that an interrupt handler needs.
pub trait Registers {
    /// Reads an adapter register of `width` bytes (1, 2 or 4) at `offset` from the adapter's base.
    fn read_register(&mut self, offset: u64, width: u8) -> u32;

    /// Writes an adapter register of `width` bytes (1, 2 or 4) at `offset` from the adapter's base.
    fn write_register(&mut self, offset: u64, width: u8, value: u32);
}

/// What the program needs of the machine it runs on.
///
/// In a guest, register accesses are `in`/`out` instructions or volatile MMIO that exit to the VMM, memory is
/// identity-mapped, and [`wait`](Platform::wait) is a doorbell. In a same-stack process the accesses are calls
/// into the adapter model and memory is a mapping shared with it.
pub trait Platform: Registers {
    /// Monotonic nanoseconds.
    fn now_ns(&self) -> u64;

    /// Sleeps until the adapter has work for the program, or `timeout_us` has passed. The adapter takes what
    /// the rings hold first.
    fn wait(&mut self, timeout_us: u32);

    /// Says that a phase of [`toll_guest_abi::phase`] has begun.
    fn phase(&mut self, phase: u32);

    /// Memory for rings and buffers, handed out once: `length` bytes aligned to `align`, zeroed, with the
    /// address that the adapter knows them by.
    fn allocate(&mut self, length: usize, align: usize) -> DmaRegion;

    /// Causes of interrupts since the last call, as the adapter driver's handler accumulated them in
    /// `Status::interrupt_causes`; 0 if the handler has not run.
    fn take_interrupt(&mut self) -> u32;

    /// Payload of a flow, by its number, that a receive call gave the application: discarded, as bulk traffic is, unless
    /// a platform looks at it (a test that verifies every byte).
    fn received(&mut self, _flow: usize, _bytes: &[u8]) {}
}

/// Memory that the program and the adapter share.
#[derive(Debug, Clone, Copy)]
pub struct DmaRegion {
    /// Where the program finds it.
    pub pointer: *mut u8,
    /// Where the adapter finds it: guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: usize,
}
