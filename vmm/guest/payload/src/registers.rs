//! Port and memory-mapped register accesses: each is one instruction, and one exit.

use core::arch::asm;

use toll_guest::platform::Registers;
use toll_guest_abi::{BootInfo, adapter};

/// Writes 32 bits to an I/O port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: a port write leaves this program's memory alone but for what the VMM's devices write to rings and
    // shared pages, all of which are accessed as volatile or atomic. Not `nomem`: ring contents must be in
    // memory before the device looks.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// Where the adapter's registers are.
#[derive(Debug, Clone, Copy)]
pub enum AdapterRegisters {
    /// From this I/O port on.
    Pio(u16),
    /// From this address on.
    Mmio(u64),
}

impl AdapterRegisters {
    /// The adapter that `boot` describes.
    pub fn of(boot: &BootInfo) -> Self {
        // PCI I/O BARs decode 16 bits of port number.
        if boot.adapter == adapter::PCNET {
            Self::Pio(boot.adapter_base as u16)
        } else {
            Self::Mmio(boot.adapter_base)
        }
    }
}

impl Registers for AdapterRegisters {
    fn read_register(&mut self, offset: u64, width: u8) -> u32 {
        match *self {
            Self::Pio(base) => {
                let port = base.wrapping_add(offset as u16);
                let value: u32;
                // SAFETY: as for `out32`.
                unsafe {
                    match width {
                        1 => {
                            let byte: u8;
                            asm!("in al, dx", in("dx") port, out("al") byte, options(nostack, preserves_flags));
                            value = u32::from(byte);
                        }
                        2 => {
                            let word: u16;
                            asm!("in ax, dx", in("dx") port, out("ax") word, options(nostack, preserves_flags));
                            value = u32::from(word);
                        }
                        _ => {
                            asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags))
                        }
                    }
                }
                value
            }
            Self::Mmio(base) => {
                let address = base.wrapping_add(offset) as usize;
                // SAFETY: the VMM maps the adapter's window at `base` and nothing else lives there; KVM decodes
                // plain moves, which volatile accesses of these widths are.
                unsafe {
                    match width {
                        1 => u32::from((address as *const u8).read_volatile()),
                        2 => u32::from((address as *const u16).read_volatile()),
                        _ => (address as *const u32).read_volatile(),
                    }
                }
            }
        }
    }

    fn write_register(&mut self, offset: u64, width: u8, value: u32) {
        match *self {
            Self::Pio(base) => {
                let port = base.wrapping_add(offset as u16);
                match width {
                    // SAFETY: as for `out32`.
                    1 => unsafe {
                        asm!("out dx, al", in("dx") port, in("al") value as u8, options(nostack, preserves_flags));
                    },
                    // SAFETY: as for `out32`.
                    2 => unsafe {
                        asm!("out dx, ax", in("dx") port, in("ax") value as u16, options(nostack, preserves_flags));
                    },
                    _ => out32(port, value),
                }
            }
            Self::Mmio(base) => {
                let address = base.wrapping_add(offset) as usize;
                // SAFETY: as for `read_register`.
                unsafe {
                    match width {
                        1 => (address as *mut u8).write_volatile(value as u8),
                        2 => (address as *mut u16).write_volatile(value as u16),
                        _ => (address as *mut u32).write_volatile(value),
                    }
                }
            }
        }
    }
}
