//! The payload program as an ELF image, and its way into guest memory.

use elf::ElfBytes;
use elf::abi::{PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use toll_vnic::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::{Entry, Pages};
use crate::layout::{IMAGE, IMAGE_END, PAGE};

/// The traffic program.
pub const PAYLOAD: &[u8] = include_bytes!(env!("TOLL_PAYLOAD"));
/// The program of the VMM's own tests.
#[doc(hidden)]
pub const SELF_TEST: &[u8] = include_bytes!(env!("TOLL_SELF_TEST"));

/// Symbol of the code that the interrupt descriptor table leads to.
const INTERRUPT_GATE: &str = "interrupt_gate";

/// Why an image can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is no ELF file for this machine.
    #[error("the guest program is no ELF image")]
    Parse(#[from] elf::ParseError),
    /// A part of it lies where it must not.
    #[error("the guest program can't be loaded: {0}")]
    Layout(&'static str),
}

/// Copies the ELF file `image` into `memory`; returns how the guest begins.
///
/// # Errors
/// [`ImageError`] if the file is malformed or lies outside of its place.
pub fn load(image: &[u8], memory: &GuestMemory, memory_length: u64) -> Result<Entry, ImageError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image)?;
    let mut pages: Vec<Pages> = Vec::new();
    for segment in file.segments().into_iter().flatten().filter(|segment| segment.p_type == PT_LOAD) {
        let start = segment.p_vaddr;
        let end = start.checked_add(segment.p_memsz).and_then(|end| end.checked_next_multiple_of(PAGE));
        let Some(end) = end.filter(|end| start >= IMAGE && *end <= IMAGE_END && start.is_multiple_of(PAGE))
        else {
            return Err(ImageError::Layout("a segment lies outside of its place"));
        };
        let (writable, executable) = (segment.p_flags & PF_W != 0, segment.p_flags & PF_X != 0);
        if writable && executable {
            return Err(ImageError::Layout("a segment is both writable and executable"));
        }
        let data = file.segment_data(&segment)?;
        memory
            .write_slice(data, GuestAddress(start))
            .map_err(|_| ImageError::Layout("a segment lies outside of guest memory"))?;
        pages.push(Pages { start, end, writable, executable });
    }
    let (symbols, names) = file.symbol_table()?.ok_or(ImageError::Layout("it has no symbols"))?;
    let gate = symbols
        .iter()
        .find(|symbol| names.get(symbol.st_name as usize).is_ok_and(|name| name == INTERRUPT_GATE))
        .ok_or(ImageError::Layout("it has no interrupt gate"))?;
    Ok(Entry { instruction: file.ehdr.e_entry, interrupt_gate: gate.st_value, pages, memory: memory_length })
}
