//! What a hostile guest does to an adapter, read from bytes: one function a fuzz target, which the property tests call
//! too. Every sequence of bytes is a sequence of accesses; a function that returns has found nothing, one that panics or
//! faults has. Built with the feature `fuzzing`, and for tests.

mod guarded;
mod input;

pub use crate::adapter::pcnet::fuzz::{registers as pcnet_registers, rings as pcnet_rings};
pub(crate) use guarded::Guarded;
pub(crate) use input::Input;
