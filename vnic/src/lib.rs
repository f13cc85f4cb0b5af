//! Virtual Ethernet adapters and the ports behind them. An adapter is a chip: registers, rings in guest memory
//! and an interrupt line. A port is the host side: where its frames go. Neither knows KVM.

pub mod adapter;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gather;
pub mod piece;
pub mod port;
mod segment;
pub mod stages;
mod vnet_header;

/// Guest memory as adapters see it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
