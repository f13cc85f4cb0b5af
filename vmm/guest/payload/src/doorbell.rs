//! Doorbells: port writes that always exit to the VMM ([`toll_guest_abi::doorbell`]).

use toll_guest_abi::doorbell::{END, PHASE, WAIT};

use crate::registers::out32;

/// Sleeps until the adapter has work or `timeout_us` has passed.
pub fn wait(timeout_us: u32) {
    out32(WAIT, timeout_us);
}

/// Says that a phase has begun.
pub fn phase(phase: u32) {
    out32(PHASE, phase);
}

/// Ends the guest in good order.
pub fn end() -> ! {
    ring_end(0)
}

/// Ends the guest with the last words in `Status::message`.
pub fn end_failed() -> ! {
    ring_end(1)
}

fn ring_end(value: u32) -> ! {
    loop {
        // The VMM doesn't return from this doorbell; the loop holds a program that it resumes all the same.
        out32(END, value);
    }
}
