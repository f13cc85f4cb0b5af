//! What the header before a driver's frame asks for (virtio 1.2, 5.1.6.2).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::features::Features;
use crate::vnet_header::{FLAGS, GSO_SIZE, GSO_TYPE, HDR_LEN, LENGTH, NEEDS_CSUM};

/// What a driver's header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// Nothing: the frame goes out as it is.
    Nothing,
    /// The checksum.
    Checksum,
    /// Segmentation, and a checksum for each segment.
    Segmentation,
}

/// What `header` asks for; or why it can't, after what was negotiated (5.1.6.2.1). Offsets and sizes are compared with
/// the frame by who does the work. Other flags than VIRTIO_NET_HDR_F_NEEDS_CSUM are no driver's to set and mean nothing
/// (5.1.6.2.2).
pub(super) fn read(header: &[u8; LENGTH], features: Features) -> Result<Asks, &'static str> {
    let (flags, gso_type) = (u32::from(header[FLAGS]), u32::from(header[GSO_TYPE]));
    let checksum = flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    let segmentation = match gso_type {
        VIRTIO_NET_HDR_GSO_NONE => None,
        VIRTIO_NET_HDR_GSO_TCPV4 => Some(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => Some(VIRTIO_NET_F_HOST_TSO6),
        _ => return Err("its header asks for an offload that was not negotiated"),
    };
    let negotiated = (!checksum || features.has(VIRTIO_NET_F_CSUM))
        && segmentation.is_none_or(|feature| features.has(feature));
    if !negotiated {
        return Err("its header asks for an offload that was not negotiated");
    }
    match (segmentation, checksum) {
        (Some(_), false) => Err("its header asks for segments without checksums"),
        (Some(_), true) if header[GSO_SIZE..GSO_SIZE + 2] == [0, 0] => {
            Err("its header asks for segments of no size")
        }
        (Some(_), true) => Ok(Asks::Segmentation),
        (None, true) => Ok(Asks::Checksum),
        (None, false) => Ok(Asks::Nothing),
    }
}

/// Makes `header` one that a port may rely on, before a frame of `length` bytes for which the driver asks `asks`.
pub(super) fn clean(header: &mut [u8; LENGTH], asks: Asks, length: usize) {
    if asks == Asks::Nothing {
        // The other fields mean nothing then (5.1.6.2.2), and the kernel would look at them.
        *header = [0; LENGTH];
        return;
    }
    header[FLAGS] &= NEEDS_CSUM;
    // A hint that may be wrong (5.1.6.2.2): the kernel refuses a frame whose headers are longer than it.
    let hint = u16::from_le_bytes([header[HDR_LEN], header[HDR_LEN + 1]]);
    let hint = usize::from(hint).min(length) as u16;
    header[HDR_LEN..HDR_LEN + 2].copy_from_slice(&hint.to_le_bytes());
}
