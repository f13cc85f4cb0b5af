//! The payload program as a library: adapter drivers, smoltcp and bulk traffic over a [`platform::Platform`].
//! In a guest the platform is port I/O, MMIO and doorbells; in a same-stack process it is the adapter model
//! itself, so both run the very same code above it.
#![no_std]

pub mod platform;
