//! The payload program as a guest: `toll_guest::program` over the guest's platform.
#![no_std]
#![no_main]

use toll_guest::driver;
use toll_guest::program::{self, ProgramError};
use toll_guest_abi::{BootInfo, Command, Status};
use toll_payload::gate;
use toll_payload::platform::GuestPlatform;

toll_payload::entry!(main);

fn main(
    boot: &'static BootInfo,
    command: &'static Command,
    status: &'static Status,
) -> Result<(), ProgramError> {
    if let Some(handler) = driver::interrupt_handler(boot.adapter) {
        gate::install(boot, handler);
    }
    program::run(&mut GuestPlatform::new(boot, status), boot, command, status)
}
