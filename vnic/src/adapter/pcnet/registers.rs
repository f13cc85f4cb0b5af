//! Register file of the Am79C970A: what the CSRs and BCRs hold and which writes they take. No memory, no port:
//! a write answers with what the chip has to do.
//!
//! ```text
//!            INIT               STRT
//!  STOPPED ---------> INITIALISED ---> RUNNING     INIT|STRT does both
//!     ^                   |               |
//!     +------ STOP, S_RESET (read of RESET) --------+
//! ```
//! Source: AMD publication 19436 (Am79C970A data sheet), "User Accessible Registers".

use toll_protocol::units::MacAddress;

use super::bits::{bcr, csr0, csr3, csr4, csr5, csr15};
use super::rings::{Layout, Ring, Style};

/// What the chip has to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Orders {
    /// Read the init block.
    pub(crate) initialise: bool,
    /// Start the transmitter and the receiver, once initialised.
    pub(crate) start: bool,
    /// Look at the transmit ring.
    pub(crate) transmit: bool,
}

/// The register file.
#[derive(Debug)]
pub(crate) struct RegisterFile {
    csr: [u16; 128],
    bcr: [u16; 32],
    rap: u8,
    aprom: [u8; 16],
    /// The link is up: BCR4 LEDOUT.
    link: bool,
    /// Receive ring: CSR24/25, CSR72, CSR76.
    pub(crate) receive: Ring,
    /// Transmit ring: CSR30/31, CSR74, CSR78.
    pub(crate) transmit: Ring,
}

impl RegisterFile {
    /// After H_RESET, with `mac` in the APROM.
    pub(crate) fn new(mac: MacAddress) -> Self {
        let mut aprom = [0; 16];
        aprom[..6].copy_from_slice(&mac.0);
        aprom[9] = 0x11;
        aprom[14..].copy_from_slice(b"WW");
        let sum: u16 = aprom.iter().map(|byte| u16::from(*byte)).sum();
        aprom[12..14].copy_from_slice(&sum.to_le_bytes());
        let mut bcr = [0; 32];
        for (index, value) in [
            (0, 0x0005),
            (1, 0x0005),
            (2, 0x0002),
            (4, 0x00c0),
            (5, 0x0084),
            (6, 0x0088),
            (7, 0x0090),
            (18, 0x9001),
            (19, 0x0002),
            (20, 0x0200),
            (22, 0xff06),
        ] {
            bcr[index] = value;
        }
        let mut csr = [0; 128];
        csr[58] = bcr[20];
        for (index, value) in [(88, 0x1003), (89, 0x0262)] {
            csr[index] = value;
        }
        let (receive, transmit) = (Ring::RESET, Ring::RESET);
        let mut file = Self { csr, bcr, rap: 0, aprom, link: true, receive, transmit };
        file.soft_reset();
        file
    }

    /// S_RESET, by a read of the RESET register. The init block's address, the rings, LADRF, the software style and all
    /// BCRs, DWIO among them, keep what they hold: `pcnet32` gives INIT after a reset without writing them again.
    pub(crate) fn soft_reset(&mut self) {
        self.rap = 0;
        self.csr[0] = csr0::STOP;
        self.csr[15] &= csr15::KEPT;
        for index in [3, 5, 46, 47, 82, 112, 114, 124] {
            self.csr[index] = 0;
        }
        for (index, value) in [(4, csr4::MASKS), (80, 0x1410), (100, 0x0200)] {
            self.csr[index] = value;
        }
        // The address goes from the APROM into PADR, as drivers expect that compare the two.
        for (word, bytes) in self.csr[12..15].iter_mut().zip(self.aprom.chunks_exact(2)) {
            *word = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
    }

    /// Whether registers are 32 bits wide.
    pub(crate) const fn dwio(&self) -> bool {
        self.bcr[18] & bcr::DWIO != 0
    }

    /// Enters DWIO; only H_RESET leaves it.
    pub(crate) const fn enter_dwio(&mut self) {
        self.bcr[18] |= bcr::DWIO;
    }

    pub(crate) const fn csr0(&self) -> u16 {
        self.csr[0]
    }

    pub(crate) const fn raise(&mut self, bits: u16) {
        self.csr[0] |= bits;
    }

    pub(crate) const fn transmitter_off(&mut self) {
        self.csr[0] &= !csr0::TXON;
    }

    pub(crate) const fn csr3(&self) -> u16 {
        self.csr[3]
    }

    pub(crate) const fn csr4(&self) -> u16 {
        self.csr[4]
    }

    pub(crate) const fn csr5(&self) -> u16 {
        self.csr[5]
    }

    pub(crate) const fn mode(&self) -> u16 {
        self.csr[15]
    }

    pub(crate) fn set_mode(&mut self, mode: u16) {
        self.csr[15] = mode;
    }

    /// Software style, as CSR58 and BCR20 have it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) const fn csr58(&self) -> u16 {
        self.csr[58]
    }

    pub(crate) const fn link(&self) -> bool {
        self.link
    }

    pub(crate) const fn set_link(&mut self, up: bool) {
        self.link = up;
    }

    /// Sets a status bit of CSR4.
    pub(crate) const fn raise_csr4(&mut self, bits: u16) {
        self.csr[4] |= bits;
    }

    /// Address of the init block, from CSR1 and CSR2.
    pub(crate) fn init_block(&self) -> u32 {
        u32::from(self.csr[2]) << 16 | u32::from(self.csr[1])
    }

    /// How descriptors are read.
    pub(crate) fn layout(&self) -> Layout {
        let style = match self.csr[58] & 0xff {
            1 | 2 => Style::Pcnet32,
            3 => Style::Pcnet32Swapped,
            _ => Style::Lance16,
        };
        Layout { style, high_address: u32::from(self.csr[2] & 0xff00) << 16 }
    }

    /// Physical address that is matched: CSR12-14.
    pub(crate) fn physical_address(&self) -> [u8; 6] {
        let [a, b] = self.csr[12].to_le_bytes();
        let [c, d] = self.csr[13].to_le_bytes();
        let [e, f] = self.csr[14].to_le_bytes();
        [a, b, c, d, e, f]
    }

    pub(crate) fn set_physical_address(&mut self, address: [u8; 6]) {
        for (word, bytes) in self.csr[12..15].iter_mut().zip(address.chunks_exact(2)) {
            *word = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
    }

    /// CSR6: the ring lengths as the init block encodes them.
    pub(crate) fn set_encoded_lengths(&mut self, receive: u8, transmit: u8) {
        self.csr[6] = u16::from(transmit & 0xf) << 12 | u16::from(receive & 0xf) << 8;
    }

    /// Logical address filter: CSR8-11.
    pub(crate) fn logical_filter(&self) -> u64 {
        self.csr[8..12].iter().rev().fold(0, |filter, word| filter << 16 | u64::from(*word))
    }

    pub(crate) fn set_logical_filter(&mut self, filter: u64) {
        for (index, word) in self.csr[8..12].iter_mut().enumerate() {
            *word = (filter >> (16 * index)) as u16;
        }
    }

    /// Counts a frame that found no buffer: CSR112, and MFCO when it wraps.
    pub(crate) fn count_missed(&mut self) {
        self.count_up(112);
        self.raise(csr0::MISS);
    }

    /// Counts CSR112 (missed frames, MFCO) or CSR114 (collisions, RCVCCO) one up.
    const fn count_up(&mut self, index: usize) {
        self.csr[index] = self.csr[index].wrapping_add(1);
        if self.csr[index] == 0 {
            self.csr[4] |= if index == 112 { csr4::MFCO } else { csr4::RCVCCO };
        }
    }

    /// Whether some source of interrupts is active and not masked: INTR.
    pub(crate) const fn interrupt_pending(&self) -> bool {
        let csr0 = self.csr[0] & !self.csr[3] & csr0::INTERRUPTS;
        let csr4 = (self.csr[4] >> 1) & !self.csr[4] & csr4::MASKS | self.csr[4] & csr4::UINT;
        let csr5 = (self.csr[5] >> 1) & self.csr[5] & csr5::ENABLES;
        csr0 | csr4 | csr5 != 0
    }

    /// Level of the interrupt line.
    pub(crate) const fn interrupt_line(&self) -> bool {
        self.csr[0] & csr0::IENA != 0 && self.interrupt_pending()
    }

    pub(crate) const fn suspended(&self) -> bool {
        self.csr[5] & csr5::SPND != 0
    }

    /// Ring and init registers take writes only then.
    const fn configurable(&self) -> bool {
        self.csr[0] & csr0::STOP != 0 || self.suspended()
    }

    pub(crate) fn read_rap(&self) -> u16 {
        u16::from(self.rap)
    }

    pub(crate) fn write_rap(&mut self, value: u16) {
        self.rap = (value & 0x7f) as u8;
    }

    pub(crate) fn read_aprom(&self, offset: usize) -> u8 {
        self.aprom[offset & 0xf]
    }

    pub(crate) fn write_aprom(&mut self, offset: usize, value: u8) {
        if self.bcr[2] & bcr::APROMWE != 0 {
            self.aprom[offset & 0xf] = value;
        }
    }

    /// RDP: the CSR that RAP selects.
    pub(crate) fn read_csr(&self) -> u16 {
        let counter = |ring: &Ring| (ring.length - ring.index).wrapping_neg() as u16;
        // Pairs of registers that hold an address: the even one its lower half.
        let half = |address: u32| (address >> if self.rap & 1 == 0 { 0 } else { 16 }) as u16;
        let descriptor = |ring: &Ring, ahead| half(ring.address(ahead, self.layout().style) as u32);
        match self.rap {
            0 => {
                let mut value = self.csr[0];
                if value & (csr0::BABL | csr0::CERR | csr0::MISS | csr0::MERR) != 0 {
                    value |= csr0::ERR;
                }
                if self.interrupt_pending() {
                    value |= csr0::INTR;
                }
                value
            }
            16 => self.csr[1],
            17 => self.csr[2],
            24 | 25 => half(self.receive.base),
            26 | 27 => descriptor(&self.receive, 1),
            28 | 29 => descriptor(&self.receive, 0),
            30 | 31 => half(self.transmit.base),
            32 | 33 => descriptor(&self.transmit, 1),
            34 | 35 => descriptor(&self.transmit, 0),
            72 => counter(&self.receive),
            74 => counter(&self.transmit),
            76 => self.receive.length.wrapping_neg() as u16,
            78 => self.transmit.length.wrapping_neg() as u16,
            index => self.csr[usize::from(index)],
        }
    }

    /// RDP: the CSR that RAP selects.
    pub(crate) fn write_csr(&mut self, value: u16) -> Orders {
        let low = |base: u32| base & 0xffff_0000 | u32::from(value);
        let high = |base: u32| base & 0xffff | u32::from(value) << 16;
        // Two's complement: 0 is 65536 descriptors.
        let length = (u32::from(value) | 0xffff_0000).wrapping_neg().max(1);
        let index = usize::from(self.rap);
        match self.rap {
            0 => return self.write_csr0(value),
            3 => self.csr[3] = value & csr3::WRITABLE,
            4 => {
                let status = self.csr[4] & (csr4::STATUS | csr4::UINT);
                let mut status = status & !(value & (csr4::STATUS | csr4::UINT));
                if value & csr4::UINTCMD != 0 {
                    status |= csr4::UINT;
                }
                self.csr[4] = value & !(csr4::STATUS | csr4::UINT | csr4::UINTCMD) | status;
            }
            5 => {
                let resumes = self.suspended() && value & csr5::SPND == 0;
                let status = self.csr[5] & csr5::STATUS & !(value & csr5::STATUS);
                self.csr[5] = value & csr5::WRITABLE | status;
                // A demand made while suspended is met then.
                return Orders { transmit: resumes, ..Orders::default() };
            }
            58 => self.write_style(value),
            100 | 124 => self.csr[index] = value,
            112 | 114 if self.csr[4] & csr4::EN124 != 0 => self.count_up(index),
            _ if !self.configurable() => {}
            1 | 16 => self.csr[1] = value,
            2 | 17 => self.csr[2] = value,
            8..=15 | 46 | 47 | 80 | 82 => self.csr[index] = value,
            24 => self.receive.base = low(self.receive.base),
            25 => self.receive.base = high(self.receive.base),
            30 => self.transmit.base = low(self.transmit.base),
            31 => self.transmit.base = high(self.transmit.base),
            72 => self.receive.go_to(length),
            74 => self.transmit.go_to(length),
            76 => self.receive = Ring { length, index: 0, ..self.receive },
            78 => self.transmit = Ring { length, index: 0, ..self.transmit },
            _ => {}
        }
        Orders::default()
    }

    fn write_csr0(&mut self, value: u16) -> Orders {
        self.csr[0] &= !(value & csr0::WRITE_1_TO_CLEAR);
        self.csr[0] = self.csr[0] & !csr0::IENA | value & csr0::IENA;
        // STOP wins over INIT and STRT.
        if value & csr0::STOP != 0 {
            self.stop();
            return Orders::default();
        }
        let orders = Orders {
            initialise: value & csr0::INIT != 0 && self.csr[0] & csr0::INIT == 0,
            start: value & csr0::STRT != 0 && self.csr[0] & csr0::STRT == 0,
            transmit: value & csr0::TDMD != 0,
        };
        if orders.initialise {
            self.csr[0] = self.csr[0] & !csr0::STOP | csr0::INIT;
        }
        orders
    }

    /// STRT: the transmitter and the receiver go on unless CSR15 disables them.
    pub(crate) const fn start(&mut self) {
        self.csr[0] = self.csr[0] & !csr0::STOP | csr0::STRT;
        if self.csr[15] & csr15::DTX == 0 {
            self.csr[0] |= csr0::TXON;
        }
        if self.csr[15] & csr15::DRX == 0 {
            self.csr[0] |= csr0::RXON;
        }
    }

    /// STOP: CSR0 is as after reset, causes and counters are cleared; rings and addresses keep what they hold.
    pub(crate) const fn stop(&mut self) {
        self.csr[0] = csr0::STOP;
        self.csr[4] &= !(csr4::STATUS | csr4::UINT);
        self.csr[5] &= !(csr5::STATUS | csr5::SPND);
        self.csr[112] = 0;
        self.csr[114] = 0;
    }

    fn write_style(&mut self, value: u16) {
        if !self.configurable() {
            return;
        }
        // SSIZE32 (bit 8) and CSRPCNET (bit 9) follow from the style.
        let style = match value & 0xff {
            style @ 1 => 0x0100 | style,
            style @ (2 | 3) => 0x0300 | style,
            _ => 0x0200,
        };
        self.bcr[20] = style | value & bcr::APERREN;
        self.csr[58] = self.bcr[20];
    }

    /// BDP: the BCR that RAP selects. Those that the chip has not read as 0: it has no MII, so no BCR32 to BCR34.
    pub(crate) fn read_bcr(&self) -> u16 {
        let Some(&value) = self.bcr.get(usize::from(self.rap)) else { return 0 };
        match self.rap {
            4..=7 if self.link && value & bcr::LNKSTE != 0 => value | bcr::LEDOUT,
            _ => value,
        }
    }

    /// BDP: the BCR that RAP selects. Reserved bits and BCRs that the chip has not take no write.
    pub(crate) fn write_bcr(&mut self, value: u16) {
        let index = usize::from(self.rap);
        match self.rap {
            2 => self.bcr[2] = value & bcr::MC_WRITABLE,
            4..=7 => self.bcr[index] = value & bcr::LED_WRITABLE,
            9 => self.bcr[9] = value & bcr::FDC_WRITABLE,
            16 | 17 | 21 | 22 => self.bcr[index] = value,
            // DWIO is the chip's own: set by a 32-bit write to RDP, cleared by H_RESET.
            18 => self.bcr[18] = value & !bcr::DWIO | self.bcr[18] & bcr::DWIO,
            19 => self.bcr[19] = value & bcr::EECAS_WRITABLE,
            20 => self.write_style(value),
            _ => {}
        }
    }
}
