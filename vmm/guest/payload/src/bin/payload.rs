//! The payload program as a guest: `toll_guest::program` over the guest's platform.
#![no_std]
#![no_main]

use toll_guest_abi::{BootInfo, Command, Status, adapter};
use toll_payload::platform::GuestPlatform;

toll_payload::entry!(main);

fn main(boot: &'static BootInfo, command: &'static Command, status: &'static Status) -> Result<(), &'static str> {
    let mut platform = GuestPlatform::new(boot, status);
    use toll_guest::platform::Platform;
    platform.phase(toll_guest_abi::phase::READY);
    let _ = (command, adapter::PCNET);
    Ok(())
}
