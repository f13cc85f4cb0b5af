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

use std::io::IoSlice;

use arrayvec::ArrayVec;

use super::LONGEST_SEGMENT;
use super::header::{self, Asks};
use crate::gather::{MAX_PARTS, Parts};
use crate::segment::{CHECKSUM, LONGEST_HEADERS, PSH, Segment, Version};

/// Pieces of payload of a train at most: 65535 bytes in segments of 512 bytes.
const MAX_PIECES: usize = 128;
/// Pieces of a train as the port gets them.
pub(super) type Pieces<'t> = ArrayVec<IoSlice<'t>, { MAX_PIECES + 2 }>;

const NEEDS_CSUM: u8 = virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_TCPV4: u8 = virtio_bindings::virtio_net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = virtio_bindings::virtio_net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;

/// A segment that may be joined with others.
pub(super) struct Car<'m> {
    segment: Segment,
    head: [u8; LONGEST_HEADERS],
    /// Of the payload.
    pieces: ArrayVec<IoSlice<'m>, MAX_PARTS>,
}

impl<'m> Car<'m> {
    /// The segment in a frame of `length` bytes in `parts`, if it may be joined and its checksum is right or, by
    /// `vnet_header`, for the device to complete.
    pub(super) fn of(
        parts: &Parts<'m>,
        length: usize,
        asks: Asks,
        vnet_header: &[u8; header::LENGTH],
    ) -> Option<Self> {
        let mut head = [0; LONGEST_HEADERS];
        let mut filled = 0;
        for part in parts {
            let count = part.len().min(head.len() - filled);
            head[filled..filled + count].copy_from_slice(&part[..count]);
            filled += count;
        }
        let segment = Segment::parse(&head[..filled], length).filter(Segment::is_plain)?;
        let mut pieces = parts.clone();
        let mut rest = &mut pieces[..];
        IoSlice::advance_slices(&mut rest, segment.payload);
        let pieces: ArrayVec<_, MAX_PARTS> = rest.iter().copied().collect();
        // The sum is one of 16-bit words.
        let (_, whole) = pieces.split_last()?;
        if whole.iter().any(|piece| !piece.len().is_multiple_of(2)) {
            return None;
        }
        let field = |at: usize| usize::from(u16::from_le_bytes([vnet_header[at], vnet_header[at + 1]]));
        let holds = match asks {
            Asks::Segmentation => false,
            Asks::Checksum => {
                (field(header::CSUM_START), field(header::CSUM_OFFSET)) == (segment.transport, CHECKSUM)
            }
            Asks::Nothing => segment.holds(&head, pieces.iter().map(|piece| &**piece)),
        };
        holds.then_some(Self { segment, head, pieces })
    }
}

/// Joined segments, or one that may be joined with those to come.
pub(super) struct Train<'m> {
    first: Segment,
    head: [u8; LONGEST_HEADERS],
    vnet_header: [u8; header::LENGTH],
    pieces: ArrayVec<IoSlice<'m>, MAX_PIECES>,
    payload: usize,
    /// Head of each chain.
    chains: ArrayVec<u16, MAX_PIECES>,
    /// Nothing may follow.
    closed: bool,
    pushes: bool,
}

impl<'m> Train<'m> {
    /// One that begins with `car`, which has `vnet_header` and came in the chain `chain`.
    pub(super) fn new(car: Car<'m>, vnet_header: [u8; header::LENGTH], chain: u16) -> Self {
        let Car { segment, head, pieces } = car;
        Self {
            first: segment,
            head,
            vnet_header,
            pieces: pieces.into_iter().collect(),
            payload: segment.length,
            chains: ArrayVec::from_iter([chain]),
            closed: segment.pushes(),
            pushes: segment.pushes(),
        }
    }

    /// Takes `car` along if it follows; gives it back otherwise.
    pub(super) fn append(&mut self, car: Car<'m>, chain: u16) -> Result<(), Car<'m>> {
        let room = self.first.payload + self.payload + car.segment.length <= LONGEST_SEGMENT
            && self.pieces.remaining_capacity() >= car.pieces.len()
            && !self.chains.is_full();
        let follows = || self.first.is_followed_by(&self.head, self.chains.len(), &car.segment, &car.head);
        if self.closed || !room || !follows() {
            return Err(car);
        }
        self.pieces.extend(car.pieces);
        self.payload += car.segment.length;
        self.chains.push(chain);
        self.pushes = car.segment.pushes();
        self.closed = self.pushes || car.segment.length < self.first.length;
        Ok(())
    }

    /// What came in which chain.
    pub(super) fn chains(&self) -> &[u16] {
        &self.chains
    }

    /// Bytes of the frames as the guest sent them.
    pub(super) fn bytes(&self) -> usize {
        self.chains.len() * self.first.payload + self.payload
    }

    /// Writes the headers of all before the port sees them: those of one segment stay as they are.
    pub(super) fn couple(&mut self) {
        if self.chains.len() == 1 {
            return;
        }
        let flags = self.first.flags | if self.pushes { PSH } else { 0 };
        self.first.rewrite(&mut self.head, 0, 0, self.payload, flags);
        let gso_type = match self.first.version {
            Version::V4 => GSO_TCPV4,
            Version::V6 => GSO_TCPV6,
        };
        // Each is below 2^16: a frame is.
        let fields = [
            (header::HDR_LEN, self.first.payload),
            (header::GSO_SIZE, self.first.length),
            (header::CSUM_START, self.first.transport),
            (header::CSUM_OFFSET, CHECKSUM),
        ];
        self.vnet_header = [0; header::LENGTH];
        self.vnet_header[header::FLAGS] = NEEDS_CSUM;
        self.vnet_header[header::GSO_TYPE] = gso_type;
        for (at, value) in fields {
            self.vnet_header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        }
    }

    /// The frame with its header, for the port.
    pub(super) fn parts(&self) -> Pieces<'_> {
        let mut parts = Pieces::new();
        parts.push(IoSlice::new(&self.vnet_header));
        parts.push(IoSlice::new(&self.head[..self.first.payload]));
        parts.extend(self.pieces.iter().copied());
        parts
    }
}
