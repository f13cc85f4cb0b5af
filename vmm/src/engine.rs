//! Engines: what runs the program of a virtual end. What each can do is in `protocol/src/engine.rs`; how it does it is a file of
//! this folder, and a line of [`open`].
//!
//! ```text
//! open (with the process's rights) --> OpenEngine --run, on a thread of its own--> Recording
//!                                         | guest: Load puts a program into the memory of a KVM guest
//!                                         | same_stack: the program is that thread
//! the thread that controls it <-- Dialogue (ready, start, progress, finish) --> the program
//! ```

pub mod guest;
mod payload;
mod same_stack;

use std::sync::Arc;

use toll_protocol::engine::Engine;
use toll_protocol::report::Failure;

use crate::boot::Program;
use crate::config::EndConfig;
use crate::dialogue::{Dialogue, PagesDialogue};
use crate::kvm::KvmError;
use crate::machine::Components;
use crate::memory::SharedPages;
use crate::recording::Recording;
use guest::KvmGuest;
use payload::Payload;
use same_stack::SameStack;

/// An engine with what it takes a right to open.
pub trait OpenEngine: Send {
    /// Name of the program's thread in reports.
    fn thread_name(&self) -> &'static str;

    /// How the program is spoken to: by the pages that it shares with the VMM, unless the engine says otherwise.
    fn dialogue(&self, config: &EndConfig, pages: &SharedPages) -> Arc<dyn Dialogue> {
        Arc::new(PagesDialogue::new(pages.clone(), config.address.address))
    }

    /// Loads `program` and runs it to its end on the calling thread, which has no right to open anything.
    ///
    /// # Errors
    /// A [`Failure`] with last words, as far as there are any.
    fn run(
        &self,
        config: &EndConfig,
        program: &Program,
        components: Components,
    ) -> Result<Box<Recording>, Failure>;
}

/// Opens what `engine` takes a right to open: the list of all engines.
///
/// # Errors
/// [`KvmError`], of a guest.
pub fn open(engine: Engine) -> Result<Box<dyn OpenEngine>, KvmError> {
    Ok(match engine {
        Engine::SameStack => Box::new(SameStack),
        Engine::Payload => Box::new(KvmGuest::open(Payload)?),
    })
}
