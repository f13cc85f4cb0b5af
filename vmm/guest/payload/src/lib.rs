//! What the payload program stands on in a guest: no kernel, 64-bit CPL3, identity-mapped memory.
//!
//! The VMM enters [`entry!`]'s `_start` with the addresses of the shared pages in RDI, RSI and RDX (the System V
//! calling convention) and a stack. The program reaches the VMM through port writes and register accesses only.
#![no_std]

pub mod console;
pub mod doorbell;
pub mod gate;
pub mod memory;
pub mod platform;
pub mod registers;

/// Defines the program's entry point, which calls `$main(&BootInfo, &Command, &Status) -> Result<(), E>` with
/// `E: Display`, and rings the END doorbell with what came of it.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// Entry point: the VMM jumps here.
        ///
        /// # Safety
        /// Called once, by the VMM, with pointers to the three shared pages.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn _start(
            boot: *const toll_guest_abi::BootInfo,
            command: *const toll_guest_abi::Command,
            status: *const toll_guest_abi::Status,
        ) -> ! {
            // SAFETY: the VMM maps the three pages, writes BootInfo before the entry and never again, and
            // touches the other two through atomics only, as this program does.
            let (boot, command, status) = unsafe { (&*boot, &*command, &*status) };
            $crate::console::attach(status);
            match $main(boot, command, status) {
                Ok(()) => $crate::doorbell::end(),
                Err(error) => $crate::console::fail(format_args!("{error}")),
            }
        }
    };
}
