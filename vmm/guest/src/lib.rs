//! The payload program as a library: adapter drivers, smoltcp and traffic over a [`platform::Platform`].
//! In a guest the platform is port I/O, MMIO and doorbells; in a same-stack process it is the adapter model
//! itself, so both run the very same code above it.
#![cfg_attr(not(test), no_std)]

mod device;
mod dma;
pub mod driver;
mod error;
pub mod platform;
pub mod program;
mod traffic;

pub use traffic::pattern;

#[cfg(test)]
extern crate self as toll_guest;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "shared with the integration tests, each of which uses a part")]
mod support;
