//! Segments of one flow that follow each other, joined into one for the host's stack: what generic receive offload does,
//! done where a guest's frames come out. The payload stays in the guest's buffers; headers are the first segment's, copied
//! before they are looked at.
//!
//! ```text
//!  chain 1: Ethernet IP TCP | payload 1      virtio_net_hdr{NEEDS_CSUM, GSO_TCPV4, gso_size}
//!  chain 2: Ethernet IP TCP | payload 2  --> Ethernet IP TCP | payload 1 | payload 2 | payload 3     one call of the port
//!  chain 3: Ethernet IP TCP | payload 3
//!
//!         first segment             the next one follows
//!  (none) --------------> running ------------------------> running
//!    ^                       |  another frame, PSH, a shorter segment, no room, or the ring's end
//!    '------ sent -----------'
//! ```
//! A segment whose checksum is wrong is not joined: it goes out as it is, and its receiver finds it out.

use arrayvec::ArrayVec;

use super::LONGEST_SEGMENT;
use super::header::Asks;
use crate::piece::Piece;
use crate::segment::{CHECKSUM, LONGEST_HEADERS, PSH, Segment, Version};
use crate::vnet_header::{self, NEEDS_CSUM};

/// Pieces of payload of a train at most: 65535 bytes in segments of 512 bytes.
const MAX_PIECES: usize = 128;
/// Pieces of a train as the port gets them.
pub(super) type Pieces<'t> = ArrayVec<Piece<'t>, { MAX_PIECES + 2 }>;

const GSO_TCPV4: u8 = virtio_bindings::virtio_net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = virtio_bindings::virtio_net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;

/// A segment that may be joined with others. Its payload is still where the guest has it.
pub(super) struct Car {
    segment: Segment,
    head: [u8; LONGEST_HEADERS],
}

/// The pieces of a frame behind its first `skip` bytes.
fn behind<'p, 'm>(parts: &'p [Piece<'m>], mut skip: usize) -> impl Iterator<Item = Piece<'m>> + 'p {
    parts.iter().filter_map(move |part| {
        let mut part = *part;
        let skipped = skip.min(part.len());
        skip -= skipped;
        part.advance(skipped);
        (!part.is_empty()).then_some(part)
    })
}

impl Car {
    /// The segment in a frame of `length` bytes in `parts`, if it may be joined and its checksum is right or, by
    /// `vnet_header`, for the device to complete.
    pub(super) fn of(
        parts: &[Piece<'_>],
        length: usize,
        asks: Asks,
        vnet_header: &[u8; vnet_header::LENGTH],
    ) -> Option<Self> {
        let mut head = [0; LONGEST_HEADERS];
        let mut filled = 0;
        for part in parts {
            filled += part.copy_to(&mut head[filled..]);
            if filled == head.len() {
                break;
            }
        }
        let segment = Segment::parse(&head[..filled], length).filter(Segment::is_plain)?;
        let field = |at: usize| usize::from(u16::from_le_bytes([vnet_header[at], vnet_header[at + 1]]));
        let holds = match asks {
            Asks::Segmentation => false,
            Asks::Checksum => {
                (field(vnet_header::CSUM_START), field(vnet_header::CSUM_OFFSET))
                    == (segment.transport, CHECKSUM)
            }
            Asks::Nothing => segment.holds(&head, behind(parts, segment.payload)),
        };
        holds.then_some(Self { segment, head })
    }
}

/// Joined segments, or one that may be joined with those to come, or none.
pub(super) struct Train<'m> {
    first: Option<Segment>,
    head: [u8; LONGEST_HEADERS],
    vnet_header: [u8; vnet_header::LENGTH],
    pieces: ArrayVec<Piece<'m>, MAX_PIECES>,
    payload: usize,
    /// Head of each chain.
    chains: ArrayVec<u16, MAX_PIECES>,
    /// Nothing may follow.
    closed: bool,
    pushes: bool,
}

impl<'m> Train<'m> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            first: None,
            head: [0; LONGEST_HEADERS],
            vnet_header: [0; vnet_header::LENGTH],
            pieces: ArrayVec::new(),
            payload: 0,
            chains: ArrayVec::new(),
            closed: false,
            pushes: false,
        }
    }

    /// Begins one with `car`, whose frame is in `parts`, which has `vnet_header` and came in the chain `chain`.
    pub(super) fn begin(
        &mut self,
        car: &Car,
        parts: &[Piece<'m>],
        vnet_header: [u8; vnet_header::LENGTH],
        chain: u16,
    ) {
        self.first = Some(car.segment);
        (self.head, self.vnet_header) = (car.head, vnet_header);
        self.pieces.clear();
        self.chains.clear();
        self.payload = 0;
        self.attach(car, parts, chain);
    }

    /// Takes `car` along if it follows; says whether it did.
    pub(super) fn append(&mut self, car: &Car, parts: &[Piece<'m>], chain: u16) -> bool {
        let Some(first) = &self.first else { return false };
        let room = first.payload + self.payload + car.segment.length <= LONGEST_SEGMENT
            && self.pieces.remaining_capacity() >= parts.len()
            && !self.chains.is_full();
        let follows = || first.is_followed_by(&self.head, self.chains.len(), &car.segment, &car.head);
        let taken = !self.closed && room && follows();
        if taken {
            self.attach(car, parts, chain);
        }
        taken
    }

    fn attach(&mut self, car: &Car, parts: &[Piece<'m>], chain: u16) {
        self.pieces.extend(behind(parts, car.segment.payload));
        self.payload += car.segment.length;
        self.chains.push(chain);
        self.pushes = car.segment.pushes();
        let short = self.first.is_some_and(|first| car.segment.length < first.length);
        self.closed = self.pushes || short;
    }

    /// Has none again.
    pub(super) fn clear(&mut self) {
        self.first = None;
        self.chains.clear();
    }

    /// What came in which chain.
    pub(super) fn chains(&self) -> &[u16] {
        &self.chains
    }

    /// Bytes of the frames as the guest sent them.
    pub(super) fn bytes(&self) -> usize {
        self.chains.len() * self.first.map_or(0, |first| first.payload) + self.payload
    }

    /// Makes the headers those of all; of one alone they are its own. Whether there is anything to send.
    pub(super) fn couple(&mut self) -> bool {
        let Some(first) = self.first else { return false };
        if self.chains.len() > 1 {
            let flags = first.flags | if self.pushes { PSH } else { 0 };
            first.rewrite(&mut self.head, 0, 0, self.payload, flags);
            // Each is below 2^16: a frame is.
            let fields = [
                (vnet_header::HDR_LEN, first.payload),
                (vnet_header::GSO_SIZE, first.length),
                (vnet_header::CSUM_START, first.transport),
                (vnet_header::CSUM_OFFSET, CHECKSUM),
            ];
            self.vnet_header = [0; vnet_header::LENGTH];
            self.vnet_header[vnet_header::FLAGS] = NEEDS_CSUM;
            self.vnet_header[vnet_header::GSO_TYPE] = match first.version {
                Version::V4 => GSO_TCPV4,
                Version::V6 => GSO_TCPV6,
            };
            for (at, value) in fields {
                self.vnet_header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
            }
        }
        true
    }

    /// The frame with its header, for the port.
    pub(super) fn parts(&self) -> Pieces<'_> {
        let mut parts = Pieces::new();
        parts.push(Piece::new(&self.vnet_header));
        parts.push(Piece::new(&self.head[..self.first.map_or(0, |first| first.payload)]));
        parts.extend(self.pieces.iter().copied());
        parts
    }
}
