//! The payload program as a guest: `toll_guest::program` over the guest's platform.
#![no_std]
#![no_main]

use toll_guest::driver::pcnet;
use toll_guest::program::{self, ProgramError};
use toll_guest_abi::{BootInfo, Command, Status, adapter};
use toll_payload::gate;
use toll_payload::platform::GuestPlatform;

toll_payload::entry!(main);

fn main(
    boot: &'static BootInfo,
    command: &'static Command,
    status: &'static Status,
) -> Result<(), ProgramError> {
    // virtio-net is polled; only pcnet has an interrupt.
    if boot.adapter == adapter::PCNET {
        gate::install(boot, |mut registers| pcnet::handle_interrupt(&mut registers));
    }
    program::run(&mut GuestPlatform::new(boot, status), boot, command, status)
}
