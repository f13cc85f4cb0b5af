//! The process of one virtual end: a KVM guest, or a host thread, that runs the payload program behind a virtual
//! adapter.
//!
//! ```text
//! session  <- socket -> agent
//!    | runner
//!    +--> engine/guest (kvm, bus, exits)  --+
//!    +--> engine/same_stack               --+--> machine --> adapter (toll_vnic) --> port
//! ```
//! `kvm` is the only module that talks to /dev/kvm; there is no asynchronous runtime here.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("toll-vmm runs x86-64 guests on Linux");

// The same-stack engine ends its program, and the I/O thread its adapter, by unwinding.
#[cfg(not(panic = "unwind"))]
compile_error!("toll-vmm is built with panics that unwind: take panic = \"abort\" out of the build profile");

mod alarm;
pub mod boot;
pub mod bus;
pub mod channel;
pub mod claim;
pub mod clock;
pub mod config;
pub mod dialogue;
pub mod engine;
pub mod exits;
mod footprint;
pub mod image;
pub mod io_thread;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod ports;
pub mod probe;
pub mod recording;
pub mod runner;
pub mod session;
pub mod snapshot;
pub mod thread;

use toll_protocol::report::Failure;

/// A failure that says `error` and all that caused it in one sentence.
fn failure(error: &dyn std::error::Error, last_words: Vec<String>) -> Failure {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        source = cause.source();
    }
    Failure { reason, last_words }
}
