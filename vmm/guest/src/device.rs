//! smoltcp's device over an adapter driver: frames are built and read where the adapter finds them.

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket};

use crate::driver::{Driver, ETHERNET_HEADER};
use crate::platform::Platform;

/// An adapter with its driver, and the platform below them.
pub(crate) struct Device<'p, P, D> {
    pub(crate) platform: &'p mut P,
    pub(crate) driver: D,
    /// MTU in bytes of IP packet.
    pub(crate) mtu: usize,
}

/// A received frame in the adapter's memory.
pub(crate) struct Received<'d>(&'d [u8]);

/// Room for a frame in the transmit ring.
pub(crate) struct Transmit<'d, P, D> {
    platform: &'d mut P,
    driver: &'d mut D,
}

impl<P: Platform, D: Driver> Device<'_, P, D> {
    /// Room for a frame, if there is any.
    fn room(&mut self) -> Option<Transmit<'_, P, D>> {
        self.driver
            .can_transmit(self.platform)
            .then_some(Transmit { platform: &mut *self.platform, driver: &mut self.driver })
    }
}

impl<P: Platform, D: Driver> phy::Device for Device<'_, P, D> {
    type RxToken<'d>
        = Received<'d>
    where
        Self: 'd;
    type TxToken<'d>
        = Transmit<'d, P, D>
    where
        Self: 'd;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        // The stack may answer a frame at once, so there has to be room before the frame is taken.
        if !self.driver.can_transmit(self.platform) {
            return None;
        }
        let checksum = self.driver.offloads().checksum;
        loop {
            let frame = self.driver.receive(self.platform)?;
            // SAFETY: the adapter gets the buffer back by the next `receive` or `release` of the driver. Both need
            // this device, which is borrowed as long as the tokens live, and the transmit token calls neither. Of a
            // frame that is passed over no token is made.
            let frame = unsafe { frame.as_ref() };
            // The stack was told to look at no TCP checksum; not every frame's is vouched for.
            if !checksum || self.driver.vouched() || checksum_holds(frame) {
                return Some((Received(frame), self.room()?));
            }
        }
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        self.room()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER;
        let offloads = self.driver.offloads();
        if offloads.checksum {
            capabilities.checksum.tcp = Checksum::None;
        }
        capabilities.segmentation.tcpv4 = offloads.segment;
        capabilities
    }
}

/// Whether the checksum of a TCP segment over IPv4 is right. Of any other frame the stack finds out itself.
fn checksum_holds(frame: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return true };
    let Ok(packet) = Ipv4Packet::new_checked(frame.payload()) else { return true };
    if frame.ethertype() != EthernetProtocol::Ipv4 || packet.next_header() != IpProtocol::Tcp {
        return true;
    }
    let Ok(segment) = TcpPacket::new_checked(packet.payload()) else { return true };
    segment.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into())
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<P: Platform, D: Driver> phy::TxToken for Transmit<'_, P, D> {
    fn set_meta(&mut self, meta: PacketMeta) {
        if let Some(size) = meta.segmentation_offload_size {
            self.driver.segment_next(size);
        }
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.driver.transmit(self.platform, length, f)
    }
}
