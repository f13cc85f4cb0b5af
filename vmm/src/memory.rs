//! Guest memory, and typed views of the pages that the guest and the VMM share.

use std::sync::atomic::{AtomicU64, Ordering};

use toll_guest_abi::{BootInfo, Command, MESSAGE_LENGTH, Status};
use toll_vnic::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout::{ARENA, BOOT_INFO, COMMAND, STACK, STACK_END, STATUS};

/// What the guest touches at once: tables and shared pages, the top of its stack, the arena's beginning (the
/// program itself is copied in, which touches it). A first touch costs about 12 us in the guest and 1.4 us here;
/// the rest of memory costs nothing until it is used.
const POPULATED: [(u64, u64); 3] =
    [(0, STACK), (STACK_END - 0x1_0000, STACK_END), (ARENA, ARENA + (1 << 20))];

/// Why guest memory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The mapping was refused.
    #[error("{bytes} bytes of guest memory could not be mapped")]
    Map {
        /// How much was asked for.
        bytes: u64,
        /// Why not.
        source: vm_memory::mmap::FromRangesError,
    },
    /// A shared page lies outside of memory.
    #[error("guest memory has no room for the page at {0:#x}")]
    Page(u64),
}

/// Maps `length` bytes of zeroed guest memory at guest physical address 0.
///
/// # Errors
/// [`MemoryError`].
pub fn allocate(length: u64) -> Result<GuestMemory, MemoryError> {
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), bytes)])
        .map_err(|source| MemoryError::Map { bytes: length, source })?;
    // No process that this one might start needs a guest's memory. It also keeps the mapping one of its own, which the kernel
    // would otherwise join with a neighbour of the same kind: what the VMM takes beside it could not be told.
    advise(&memory, 0, length, libc::MADV_DONTFORK)?;
    // What a guest holds is in no core dump of this process, whoever allows them.
    advise(&memory, 0, length, libc::MADV_DONTDUMP)?;
    for (start, end) in POPULATED {
        // Before Linux 5.14 the pages come when they are touched.
        advise(&memory, start, end, libc::MADV_POPULATE_WRITE)?;
    }
    Ok(memory)
}

/// Says how the pages of `memory` from `start` to `end` will be used.
fn advise(memory: &GuestMemory, start: u64, end: u64, advice: libc::c_int) -> Result<(), MemoryError> {
    let length = end.saturating_sub(start) as usize;
    let pages = memory.get_slice(GuestAddress(start), length).map_err(|_| MemoryError::Page(start))?;
    let pointer = pages.ptr_guard_mut().as_ptr();
    // Only for speed: a kernel that lacks it refuses, and memory is as good without.
    // SAFETY: within the mapping of `memory`, whose pages keep what they hold: those that have been touched stay, and the
    // others come zeroed, as they would without.
    let _ = unsafe { libc::madvise(pointer.cast(), length, advice) };
    Ok(())
}

/// The pages that the guest and the VMM share. The guest may write to [`Status`] at any time: all of it is atomic,
/// and nothing in it is believed.
#[derive(Debug, Clone)]
pub struct SharedPages {
    memory: GuestMemory,
    command: *const Command,
    status: *const Status,
}

// SAFETY: the pointers lead into the mapping that `memory` keeps alive, to structures made of atomics only.
unsafe impl Send for SharedPages {}
// SAFETY: as above.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// The shared pages of `memory`.
    ///
    /// # Errors
    /// [`MemoryError::Page`] if it is too small to have them.
    pub fn new(memory: &GuestMemory) -> Result<Self, MemoryError> {
        let page = |address: u64, length: usize| {
            memory
                .get_slice(GuestAddress(address), length)
                .map(|slice| slice.ptr_guard_mut().as_ptr().cast_const())
                .map_err(|_| MemoryError::Page(address))
        };
        Ok(Self {
            command: page(COMMAND, size_of::<Command>())?.cast(),
            status: page(STATUS, size_of::<Status>())?.cast(),
            memory: memory.clone(),
        })
    }

    /// Writes the boot information.
    ///
    /// # Errors
    /// [`MemoryError::Page`].
    pub fn write_boot_info(&self, boot: &BootInfo) -> Result<(), MemoryError> {
        // SAFETY: BootInfo is `repr(C)` with no padding (checked below), so all its bytes are initialised.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(boot).cast::<u8>(), size_of::<BootInfo>())
        };
        self.memory.write_slice(bytes, GuestAddress(BOOT_INFO)).map_err(|_| MemoryError::Page(BOOT_INFO))
    }

    /// What the VMM writes and the guest reads.
    pub fn command(&self) -> &Command {
        // SAFETY: page-aligned, inside the mapping that `self` keeps alive; atomics only.
        unsafe { &*self.command }
    }

    /// What the guest writes and the VMM reads.
    pub fn status(&self) -> &Status {
        // SAFETY: as for `command`.
        unsafe { &*self.status }
    }

    /// What the program has not touched of its arena comes in pages of 2 MiB from now on. The guest maps it in such pages
    /// too: with both, a translation covers as much in either. Not from the beginning: until the first frame a program
    /// touches little, and a large page may cost the kernel milliseconds to put together.
    pub fn prefer_large(&self) {
        // An arena that isn't there is none that could be larger.
        let end = self.memory.last_addr().0.saturating_add(1);
        let _ = advise(&self.memory, ARENA, end, libc::MADV_HUGEPAGE);
    }

    /// Bytes of memory.
    pub fn length(&self) -> u64 {
        self.memory.iter().map(GuestMemoryRegion::len).sum()
    }

    /// The memory that holds the pages.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The program's last words, if it left any: at most [`MESSAGE_LENGTH`] bytes, printable.
    pub fn message(&self) -> Option<String> {
        let status = self.status();
        let length = (status.message_length.load(Ordering::Acquire) as usize).min(MESSAGE_LENGTH);
        let bytes: Vec<u8> =
            status.message[..length].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        let text = String::from_utf8_lossy(&bytes);
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        (length > 0).then(|| text.chars().map(printable).collect())
    }

    /// Payload bytes sent and received since the measured interval began, as the guest counts them: progress, not a result.
    pub fn measured_bytes(&self) -> (u64, u64) {
        let Status { now, start, .. } = self.status();
        let since = |now: &AtomicU64, start: &AtomicU64| {
            let start = start.load(Ordering::Acquire);
            now.load(Ordering::Acquire).saturating_sub(start)
        };
        (since(&now.sent, &start.sent), since(&now.received, &start.received))
    }
}

const _: () = {
    // The sum of the fields' sizes: no padding hides in it.
    assert!(
        size_of::<BootInfo>()
            == 8 + 4 + 4 + 8 + 8 + 8 + 8 + 8 + 8 + 8 + 6 * 4 + 4 + 4 + 4 + 4 + 4 + 4 + 2 + 6 + 8 + 8
    );
    assert!(size_of::<Status>() <= crate::layout::PAGE as usize);
    assert!(size_of::<Command>() <= crate::layout::PAGE as usize);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_of_a_hostile_length_are_cut_and_made_printable() {
        let pages = SharedPages::new(&allocate(4 << 20).expect("memory")).expect("pages");
        assert_eq!(pages.message(), None);
        pages.status().message[0].store(0xff, Ordering::Relaxed);
        pages.status().message[1].store(0x1b, Ordering::Relaxed);
        pages.status().message_length.store(u32::MAX, Ordering::Relaxed);
        let words = pages.message().expect("a length was set");
        assert!(words.len() <= 3 * MESSAGE_LENGTH && !words.contains('\u{1b}'), "{words:?}");
    }

    #[test]
    fn progress_of_a_hostile_counter_does_not_wrap() {
        let pages = SharedPages::new(&allocate(4 << 20).expect("memory")).expect("pages");
        pages.status().start.sent.store(10, Ordering::Relaxed);
        assert_eq!(pages.measured_bytes(), (0, 0));
    }

    #[test]
    fn memory_without_room_for_the_pages_is_an_error() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_1000)]).expect("memory");
        assert!(matches!(SharedPages::new(&memory), Err(MemoryError::Page(COMMAND))));
    }
}
