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

use super::rings::{Layout, Ring, Style};

/// CSR0, controller status.
pub(crate) mod csr0 {
    pub(crate) const INIT: u16 = 1 << 0;
    pub(crate) const STRT: u16 = 1 << 1;
    pub(crate) const STOP: u16 = 1 << 2;
    pub(crate) const TDMD: u16 = 1 << 3;
    pub(crate) const TXON: u16 = 1 << 4;
    pub(crate) const RXON: u16 = 1 << 5;
    pub(crate) const IENA: u16 = 1 << 6;
    pub(crate) const INTR: u16 = 1 << 7;
    pub(crate) const IDON: u16 = 1 << 8;
    pub(crate) const TINT: u16 = 1 << 9;
    pub(crate) const RINT: u16 = 1 << 10;
    pub(crate) const MERR: u16 = 1 << 11;
    pub(crate) const MISS: u16 = 1 << 12;
    pub(crate) const CERR: u16 = 1 << 13;
    pub(crate) const BABL: u16 = 1 << 14;
    pub(crate) const ERR: u16 = 1 << 15;
    /// Cleared by writing 1.
    pub(crate) const WRITE_1_TO_CLEAR: u16 = 0x7f00;
    /// Bits that raise the interrupt line unless CSR3 masks them.
    pub(crate) const INTERRUPTS: u16 = 0x5f00;
}

/// CSR4, test and features control: status bits, each with its mask one below it, and switches.
pub(crate) mod csr4 {
    pub(crate) const STATUS: u16 = 0x026a;
    pub(crate) const MASKS: u16 = 0x0115;
    pub(crate) const UINT: u16 = 1 << 6;
    pub(crate) const UINTCMD: u16 = 1 << 7;
    pub(crate) const MFCO: u16 = 1 << 9;
    pub(crate) const ASTRP_RCV: u16 = 1 << 10;
    pub(crate) const APAD_XMT: u16 = 1 << 11;
    pub(crate) const DPOLL: u16 = 1 << 12;
}

/// CSR5, extended control and interrupt.
pub(crate) mod csr5 {
    pub(crate) const SPND: u16 = 1 << 0;
    /// Status bits, each with its enable bit one below it: MPINT, EXDINT, SINT.
    pub(crate) const STATUS: u16 = 0x0890;
    pub(crate) const ENABLES: u16 = 0x0448;
    pub(crate) const LTINTEN: u16 = 1 << 14;
    pub(crate) const TOKINTD: u16 = 1 << 15;
}

/// CSR15, mode.
pub(crate) mod csr15 {
    pub(crate) const DRX: u16 = 1 << 0;
    pub(crate) const DTX: u16 = 1 << 1;
    pub(crate) const LOOP: u16 = 1 << 2;
    pub(crate) const DXMTFCS: u16 = 1 << 3;
    pub(crate) const DRCVPA: u16 = 1 << 13;
    pub(crate) const DRCVBC: u16 = 1 << 14;
    pub(crate) const PROM: u16 = 1 << 15;
}

/// BCR18, burst and bus control: DWIO.
const BCR18_DWIO: u16 = 1 << 7;
/// BCR2, miscellaneous configuration: the APROM may be written.
const BCR2_APROMWE: u16 = 1 << 8;
/// BCR4 to BCR7, bit 15: the LED is on.
const LEDOUT: u16 = 1 << 15;
/// BCR4 to BCR7, bit 6: the LED shows the link's state.
const LNKSTE: u16 = 1 << 6;

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
        let mut file =
            Self { csr: [0; 128], bcr, rap: 0, aprom, receive: Ring::RESET, transmit: Ring::RESET };
        file.soft_reset();
        file
    }

    /// S_RESET, by a read of the RESET register. BCRs keep what they hold, DWIO among it.
    pub(crate) fn soft_reset(&mut self) {
        let mode = self.csr[15] & 0x21c4;
        let style = self.csr[58];
        self.csr = [0; 128];
        self.rap = 0;
        self.csr[0] = csr0::STOP;
        self.csr[4] = csr4::MASKS;
        for (word, bytes) in self.csr[12..15].iter_mut().zip(self.aprom.chunks_exact(2)) {
            *word = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        self.csr[15] = mode;
        self.csr[58] = if style == 0 { self.bcr[20] } else { style };
        for (index, value) in [(80, 0x1410), (88, 0x1003), (89, 0x0262), (100, 0x0200), (103, 0x0105)] {
            self.csr[index] = value;
        }
        self.receive = Ring::RESET;
        self.transmit = Ring::RESET;
    }

    /// Whether registers are 32 bits wide.
    pub(crate) const fn dwio(&self) -> bool {
        self.bcr[18] & BCR18_DWIO != 0
    }

    /// Enters DWIO; only H_RESET leaves it.
    pub(crate) const fn enter_dwio(&mut self) {
        self.bcr[18] |= BCR18_DWIO;
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
        self.csr[112] = self.csr[112].wrapping_add(1);
        if self.csr[112] == 0 {
            self.csr[4] |= csr4::MFCO;
        }
        self.raise(csr0::MISS);
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
        if self.bcr[2] & BCR2_APROMWE != 0 {
            self.aprom[offset & 0xf] = value;
        }
    }

    /// RDP: the CSR that RAP selects.
    pub(crate) fn read_csr(&self) -> u16 {
        let counter = |ring: &Ring| (ring.length - ring.index).wrapping_neg() as u16;
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
            24 => self.receive.base as u16,
            25 => (self.receive.base >> 16) as u16,
            30 => self.transmit.base as u16,
            31 => (self.transmit.base >> 16) as u16,
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
            3 | 46..=49 | 100 | 122 | 124 => self.csr[index] = value,
            4 => {
                let status = self.csr[4] & (csr4::STATUS | csr4::UINT);
                let mut status = status & !(value & (csr4::STATUS | csr4::UINT));
                if value & csr4::UINTCMD != 0 {
                    status |= csr4::UINT;
                }
                self.csr[4] = value & !(csr4::STATUS | csr4::UINT | csr4::UINTCMD) | status;
            }
            5 => {
                let status = self.csr[5] & csr5::STATUS & !(value & csr5::STATUS);
                self.csr[5] = value & !csr5::STATUS | status;
            }
            58 => self.write_style(value),
            112 => {}
            _ if !self.configurable() => {}
            1 | 16 => self.csr[1] = value,
            2 | 17 => self.csr[2] = value,
            8..=15 => self.csr[index] = value,
            24 => self.receive.base = low(self.receive.base),
            25 => self.receive.base = high(self.receive.base),
            30 => self.transmit.base = low(self.transmit.base),
            31 => self.transmit.base = high(self.transmit.base),
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

    /// STOP: CSR0 is as after reset; rings and addresses keep what they hold.
    pub(crate) const fn stop(&mut self) {
        self.csr[0] = csr0::STOP;
        self.csr[4] &= !(csr4::STATUS | csr4::UINT);
        self.csr[5] &= !csr5::SPND;
    }

    fn write_style(&mut self, value: u16) {
        if !self.configurable() {
            return;
        }
        // SSIZE32 (bit 8) and CSRPCNET (bit 9) follow from the style.
        let value = match value & 0xff {
            style @ 1 => 0x0100 | style,
            style @ (2 | 3) => 0x0300 | style,
            _ => 0x0200,
        };
        self.bcr[20] = value;
        self.csr[58] = value;
    }

    /// BDP: the BCR that RAP selects. Those that the chip has not read as 0.
    pub(crate) fn read_bcr(&self) -> u16 {
        let Some(&value) = self.bcr.get(usize::from(self.rap)) else { return 0 };
        match self.rap {
            // The link is always up: LEDOUT follows LNKSTE.
            4..=7 => value & !LEDOUT | if value & LNKSTE != 0 { LEDOUT } else { 0 },
            _ => value,
        }
    }

    /// BDP: the BCR that RAP selects.
    pub(crate) fn write_bcr(&mut self, value: u16) {
        match self.rap {
            20 => self.write_style(value),
            // DWIO can be set, not cleared.
            18 => self.bcr[18] = value | self.bcr[18] & BCR18_DWIO,
            index @ (2 | 4..=7 | 9 | 16 | 17 | 19 | 21 | 22) => self.bcr[usize::from(index)] = value,
            _ => {}
        }
    }
}
