//! The native end of a trial: traffic over kernel sockets, or iperf3 run in its place. A child
//! process of the agent that speaks [`toll_protocol::child`] over the socket it was started with.
//!
//! ```text
//! control thread (all time)                        traffic threads (all bytes)
//!   control socket, clocks, deadlines,   atomics     the system calls of their traffic,
//!   measured interval, samples, reports  <-------    nothing else
//! ```
//! Once under way the thread of a stream makes no system call but its send or receive: it never asks for the time, and
//! learns of the peer's FIN by a flag that the control thread sets when its poll says so.

pub mod clock;
pub mod config;
pub mod control;
pub mod end;
pub mod iperf3;
pub mod measure;
pub mod meter;
pub mod socket;
pub mod traffic;
pub mod worker;
pub mod zero_copy;
