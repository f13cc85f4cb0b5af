//! Descriptor rings of the Am79C970A: their state in the chip and the descriptors' layouts in guest memory.
//!
//! ```text
//! style 0 (16-bit LANCE, 8 bytes)        style 2 (32-bit PCnet, 16 bytes)
//!  +0  base 15:0                          +0  base 31:0
//!  +2  base 23:16 | status 15:8           +4  length 15:0 (two's complement) | status 15:0
//!  +4  length 15:0 (two's complement)     +8  receive: message length; transmit: errors
//!  +6  receive: message length            +12 reserved
//!      transmit: errors 15:10            style 3: style 2 with the words at +0 and +8 swapped
//! ```

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;

/// Status bits of a descriptor, in the place that they have in style 2 (RMD1 and TMD1, bits 31:16).
pub(crate) mod status {
    pub(crate) const OWN: u16 = 1 << 15;
    pub(crate) const ERR: u16 = 1 << 14;
    /// Transmit: append an FCS although CSR15 has DXMTFCS.
    pub(crate) const ADD_FCS: u16 = 1 << 13;
    /// Transmit, as the driver writes it: interrupt for this frame, when CSR5 has LTINTEN.
    pub(crate) const LTINT: u16 = 1 << 12;
    /// Transmit, as the chip writes them: MORE, ONE and DEF. Nothing collides or defers here.
    pub(crate) const COLLISIONS: u16 = 0x1c00;
    pub(crate) const FRAM: u16 = 1 << 13;
    pub(crate) const OFLO: u16 = 1 << 12;
    pub(crate) const CRC: u16 = 1 << 11;
    pub(crate) const BUFF: u16 = 1 << 10;
    pub(crate) const STP: u16 = 1 << 9;
    pub(crate) const ENP: u16 = 1 << 8;
    pub(crate) const PAM: u16 = 1 << 6;
    pub(crate) const LAFM: u16 = 1 << 5;
    pub(crate) const BAM: u16 = 1 << 4;
    /// What the chip sets in a receive descriptor.
    pub(crate) const RECEIVE_MASK: u16 = OWN | ERR | FRAM | OFLO | CRC | BUFF | STP | ENP | PAM | LAFM | BAM;
}

/// Errors of a transmit descriptor's misc word (TMD2).
pub(crate) mod transmit_error {
    pub(crate) const BUFF: u32 = 1 << 31;
    pub(crate) const UFLO: u32 = 1 << 30;
    pub(crate) const LCAR: u32 = 1 << 27;
    pub(crate) const RTRY: u32 = 1 << 26;
}

/// Software style: BCR20, bits 7:0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// 0: the LANCE's 16-bit structures.
    Lance16,
    /// 1 (ILACC) and 2 (PCnet-PCI): 32-bit structures.
    Pcnet32,
    /// 3: 32-bit structures, with the address and misc words swapped.
    Pcnet32Swapped,
}

impl Style {
    /// Bytes of a descriptor.
    pub(crate) const fn size(self) -> u32 {
        match self {
            Self::Lance16 => 8,
            Self::Pcnet32 | Self::Pcnet32Swapped => 16,
        }
    }

    /// Offset of the 16 bits that hold OWN.
    const fn status_offset(self) -> u64 {
        match self {
            Self::Lance16 => 2,
            Self::Pcnet32 | Self::Pcnet32Swapped => 6,
        }
    }

    const fn misc_offset(self) -> u64 {
        match self {
            Self::Lance16 => 6,
            Self::Pcnet32 => 8,
            Self::Pcnet32Swapped => 0,
        }
    }
}

/// How the chip reads descriptors: BCR20 and, for 16-bit structures, the bits 31:24 of all addresses (CSR2 15:8).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) style: Style,
    pub(crate) high_address: u32,
}

/// A descriptor that the chip owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Where it is.
    pub(crate) at: u64,
    /// Address of its buffer.
    pub(crate) base: u32,
    /// Length of its buffer, 1 to 4096 bytes.
    pub(crate) length: usize,
    /// [`status`] bits.
    pub(crate) status: u16,
}

/// A descriptor is outside guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outside {
    /// Where it would be.
    pub(crate) at: u64,
}

/// One ring: what the chip's registers know about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Address of the first descriptor.
    pub(crate) base: u32,
    /// Number of descriptors, 1 to 65536.
    pub(crate) length: u32,
    /// The descriptor that the chip looks at next, below `length`.
    pub(crate) index: u32,
}

impl Ring {
    /// After reset: one descriptor at address 0, as CSR76/78 have it.
    pub(crate) const RESET: Self = Self { base: 0, length: 1, index: 0 };

    /// The descriptor `ahead` of the current one, if the chip owns it.
    pub(crate) fn owned(
        &self,
        ahead: u32,
        layout: Layout,
        memory: &GuestMemory,
    ) -> Result<Option<Descriptor>, Outside> {
        let at = self.address(ahead, layout.style);
        let outside = |_| Outside { at };
        let field = |offset: u64| GuestAddress(at + offset);
        // OWN is read first: the rest of a descriptor is valid only once the driver has given it away.
        let high: u16 =
            memory.load(field(layout.style.status_offset()), Ordering::Acquire).map_err(outside)?;
        let high = u16::from_le(high);
        if high & status::OWN == 0 {
            return Ok(None);
        }
        let word = |offset| memory.read_obj::<u16>(field(offset)).map(u16::from_le).map_err(outside);
        let (base, count, status) = match layout.style {
            Style::Lance16 => {
                let low = word(0)?;
                let base = layout.high_address | u32::from(high & 0xff) << 16 | u32::from(low);
                (base, word(4)?, high & 0xff00)
            }
            style => {
                let offset = if style == Style::Pcnet32 { 0 } else { 8 };
                let base = memory.read_obj::<u32>(field(offset)).map_err(outside)?;
                (u32::from_le(base), word(4)?, high)
            }
        };
        let length = 4096 - usize::from(count & 0xfff);
        Ok(Some(Descriptor { at, base, length, status }))
    }

    /// Address of the descriptor `ahead` of the current one. The chip takes the low bits of a ring's address as 0.
    pub(crate) const fn address(&self, ahead: u32, style: Style) -> u64 {
        // Lengths are at most 65536 and a walk is at most one length long, so neither sum nor product can overflow.
        let position = (self.index + ahead) % self.length;
        (self.base & !(style.size() - 1)) as u64 + (position * style.size()) as u64
    }

    /// Moves on by `count` descriptors.
    pub(crate) const fn advance(&mut self, count: u32) {
        self.index = (self.index + count) % self.length;
    }

    /// Goes to the descriptor that has `left` descriptors, itself among them, to the end of the ring (CSR72/74).
    pub(crate) const fn go_to(&mut self, left: u32) {
        self.index = self.length.saturating_sub(left) % self.length;
    }
}

impl Descriptor {
    /// Gives the descriptor back to the driver: `status` replaces its status bits, `misc` (style-2 form) its
    /// third word.
    pub(crate) fn give_back(
        &self,
        layout: Layout,
        memory: &GuestMemory,
        status: u16,
        misc: Option<u32>,
    ) -> Result<(), Outside> {
        let outside = |_| Outside { at: self.at };
        let field = |offset: u64| GuestAddress(self.at + offset);
        let misc_at = field(layout.style.misc_offset());
        match (misc, layout.style) {
            (None, _) => {}
            (Some(misc), Style::Lance16) => {
                // Errors are in the upper half, the message length in the lower: only one is ever set.
                let misc = (misc >> 16) as u16 | misc as u16;
                memory.write_obj(misc.to_le(), misc_at).map_err(outside)?;
            }
            (Some(misc), _) => memory.write_obj(misc.to_le(), misc_at).map_err(outside)?,
        }
        let high = match layout.style {
            Style::Lance16 => status & 0xff00 | (self.base >> 16) as u16 & 0xff,
            _ => status,
        };
        // Ownership changes last.
        memory.store(high.to_le(), field(layout.style.status_offset()), Ordering::Release).map_err(outside)
    }
}
