//! What crosses a machine or a file in Toll: units, the campaign schema, messages between processes and
//! results. Pure data and pure functions; nothing here does I/O, so every other crate may depend on it.

pub mod adapters;
pub mod bounded;
pub mod campaign;
pub mod child;
pub mod cpu;
pub mod decorators;
pub mod direction;
pub mod document;
pub mod engine;
pub mod error;
pub mod facts;
pub mod failure;
pub mod figure;
pub mod file;
pub mod findings;
pub mod frame;
pub mod lack;
pub mod latencies;
pub mod message;
pub mod metrics;
pub mod peer;
pub mod port;
pub mod printable;
pub mod process;
pub mod relation;
pub mod report;
pub mod result;
pub mod service;
pub mod traffic;
pub mod trial;
pub mod units;
pub mod validity;

/// Version of every message that crosses a process boundary. Both sides of a connection must agree on it.
pub const PROTOCOL_VERSION: u32 = 9;
