//! What a virtual end takes of the host's memory beside the guest's own: pages of the process that are no file's, which are those
//! that it has written. Code is not counted, which all VMMs of a host share, nor what the kernel keeps for it.

use std::ops::Range;

use toll_protocol::units::Bytes;
use toll_vnic::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// What this process has written of its memory, the guest's left out; `None` if the kernel doesn't say.
pub fn beside(guest: &GuestMemory) -> Option<Bytes> {
    let whole = usize::try_from(guest.last_addr().0).ok()?.checked_add(1)?;
    let start = guest.get_slice(GuestAddress(0), whole).ok()?.ptr_guard().as_ptr().addr() as u64;
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    anonymous(&maps, &(start..start + whole as u64))
}

/// Bytes of `Anonymous` in all mappings but those within `left_out` (proc_pid_smaps(5)).
fn anonymous(smaps: &str, left_out: &Range<u64>) -> Option<Bytes> {
    let (mut total, mut counts) = (None, true);
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ')?;
        if let Some((start, end)) = first.split_once('-') {
            let hex = |text| u64::from_str_radix(text, 16).ok();
            let (start, end) = (hex(start)?, hex(end)?);
            counts = start < left_out.start || end > left_out.end;
        } else if first == "Anonymous:" && counts {
            let kibibytes: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
            total = Some(total.unwrap_or(0) + kibibytes * 1024);
        }
    }
    total.map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0a00000-55d0c0b00000 rw-p 00000000 00:00 0                          [heap]
Size:               1024 kB
Private_Dirty:         8 kB
Anonymous:       100 kB
7f0000000000-7f0001000000 rw-p 00000000 00:00 0
Anonymous:      4096 kB
7f0001000000-7f0001002000 rw-p 00000000 00:00 0
Anonymous:         8 kB
";

    #[test]
    fn the_guests_memory_is_left_out_and_nothing_else() {
        assert_eq!(anonymous(SMAPS, &(0x7f00_0000_0000..0x7f00_0100_0000)), Some(Bytes(108 << 10)));
        assert_eq!(anonymous(SMAPS, &(0..1)), Some(Bytes(4204 << 10)));
        assert_eq!(anonymous("", &(0..1)), None);
        assert_eq!(anonymous("nonsense\n", &(0..1)), None);
    }
}
