//! smoltcp's device over an adapter driver: frames are built and read where the adapter finds them.

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::driver::{Driver, ETHERNET_HEADER};
use crate::platform::Platform;
use crate::retransmits::Retransmits;

/// An adapter with its driver, and the platform below them.
pub(crate) struct Device<'p, P, D> {
    pub(crate) platform: &'p mut P,
    pub(crate) driver: D,
    /// MTU in bytes of IP packet.
    pub(crate) mtu: usize,
    pub(crate) retransmits: Retransmits,
}

/// A received frame in the adapter's memory.
pub(crate) struct Received<'d>(&'d [u8]);

/// Room for a frame in the transmit ring.
pub(crate) struct Transmit<'d, P, D> {
    platform: &'d mut P,
    driver: &'d mut D,
    retransmits: &'d mut Retransmits,
}

impl<P: Platform, D: Driver> Device<'_, P, D> {
    /// Room for a frame, if there is any.
    fn room(&mut self) -> Option<Transmit<'_, P, D>> {
        self.driver.can_transmit(self.platform).then_some(Transmit {
            platform: &mut *self.platform,
            driver: &mut self.driver,
            retransmits: &mut self.retransmits,
        })
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
        let frame = self.driver.receive()?;
        // SAFETY: the adapter gets the buffer back by the next `receive` or `release` of the driver. Both need
        // this device, which is borrowed as long as the tokens live, and the transmit token calls neither.
        let frame = unsafe { frame.as_ref() };
        Some((Received(frame), self.room()?))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        self.room()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER;
        capabilities
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<P: Platform, D: Driver> phy::TxToken for Transmit<'_, P, D> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.driver.transmit(self.platform, length, |frame| {
            let result = f(frame);
            self.retransmits.sent(frame);
            result
        })
    }
}
