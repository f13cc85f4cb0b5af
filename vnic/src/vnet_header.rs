//! `struct virtio_net_hdr_v1` (linux/virtio_net.h; virtio 1.2, 5.1.6): 12 bytes, little-endian, before each frame of an
//! adapter with VIRTIO_F_VERSION_1 and of a port with IFF_VNET_HDR. Sizes in bytes and where its fields are.

/// Its bytes.
pub(crate) const LENGTH: usize = 12;
/// `flags`, one byte.
pub(crate) const FLAGS: usize = 0;
/// `gso_type`, one byte.
pub(crate) const GSO_TYPE: usize = 1;
/// `hdr_len`, as all that follow two bytes.
pub(crate) const HDR_LEN: usize = 2;
/// `gso_size`.
pub(crate) const GSO_SIZE: usize = 4;
/// `csum_start`.
pub(crate) const CSUM_START: usize = 6;
/// `csum_offset`.
pub(crate) const CSUM_OFFSET: usize = 8;
/// `num_buffers`.
pub(crate) const NUM_BUFFERS: usize = 10;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM in `flags`.
pub(crate) const NEEDS_CSUM: u8 = virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
