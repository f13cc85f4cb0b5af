//! Names of the bits in the CSRs and BCRs that the model acts on.
//!
//! Source: AMD publication 19436 (Am79C970A data sheet), "User Accessible Registers".

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
    /// Bits that raise the interrupt line unless CSR3 masks them. CERR does not.
    pub(crate) const INTERRUPTS: u16 = 0x5f00;
}

/// CSR3, interrupt masks and deferral control. Masks are in the place that their causes have in CSR0.
pub(crate) mod csr3 {
    /// Frames lie in memory with the bytes of each 32-bit word reversed.
    pub(crate) const BSWP: u16 = 1 << 2;
    /// The transmitter goes on after an underflow.
    pub(crate) const DXSUFLO: u16 = 1 << 6;
    /// Masks, DXSUFLO, LAPPEN, DXMT2PD, EMBA, BSWP.
    pub(crate) const WRITABLE: u16 = 0x5f7c;
}

/// CSR4, test and features control: status bits, each with its mask one below it, and switches.
pub(crate) mod csr4 {
    /// MFCO, RCVCCO, TXSTRT, JAB.
    pub(crate) const STATUS: u16 = 0x022a;
    pub(crate) const MASKS: u16 = 0x0115;
    pub(crate) const TXSTRT: u16 = 1 << 3;
    pub(crate) const RCVCCO: u16 = 1 << 5;
    pub(crate) const UINT: u16 = 1 << 6;
    pub(crate) const UINTCMD: u16 = 1 << 7;
    pub(crate) const MFCO: u16 = 1 << 9;
    pub(crate) const ASTRP_RCV: u16 = 1 << 10;
    pub(crate) const APAD_XMT: u16 = 1 << 11;
    pub(crate) const DPOLL: u16 = 1 << 12;
    /// A write to CSR112 or CSR114 counts one up.
    pub(crate) const EN124: u16 = 1 << 15;
}

/// CSR5, extended control and interrupt.
pub(crate) mod csr5 {
    pub(crate) const SPND: u16 = 1 << 0;
    /// Status bits, each with its enable bit one below it: MPINT, EXDINT, SINT.
    pub(crate) const STATUS: u16 = 0x0890;
    pub(crate) const ENABLES: u16 = 0x0448;
    /// TOKINTD, LTINTEN, the enable bits, MPPLBA, MPEN, MPMODE, SPND.
    pub(crate) const WRITABLE: u16 = 0xc46f;
    pub(crate) const LTINTEN: u16 = 1 << 14;
    pub(crate) const TOKINTD: u16 = 1 << 15;
}

/// CSR15, mode.
pub(crate) mod csr15 {
    pub(crate) const DRX: u16 = 1 << 0;
    pub(crate) const DTX: u16 = 1 << 1;
    pub(crate) const LOOP: u16 = 1 << 2;
    pub(crate) const DXMTFCS: u16 = 1 << 3;
    pub(crate) const FCOLL: u16 = 1 << 4;
    pub(crate) const INTL: u16 = 1 << 6;
    pub(crate) const DRCVPA: u16 = 1 << 13;
    pub(crate) const DRCVBC: u16 = 1 << 14;
    pub(crate) const PROM: u16 = 1 << 15;
    /// What S_RESET leaves.
    pub(crate) const KEPT: u16 = 0x21c4;
}

/// BCRs.
pub(crate) mod bcr {
    /// BCR2, miscellaneous configuration: the APROM may be written.
    pub(crate) const APROMWE: u16 = 1 << 8;
    /// BCR2: TMAULOOP, APROMWE, INTLEVEL, DXCVRCTL, DXCVRPOL, EADISEL, AWAKE, ASEL, XMAUSEL.
    pub(crate) const MC_WRITABLE: u16 = 0x41bf;
    /// BCR4 to BCR7, bit 15: the LED is on.
    pub(crate) const LEDOUT: u16 = 1 << 15;
    /// BCR4 to BCR7, bit 6: the LED shows the link's state.
    pub(crate) const LNKSTE: u16 = 1 << 6;
    /// BCR4 to BCR7: LEDPOL, LEDDIS, and what the LED shows.
    pub(crate) const LED_WRITABLE: u16 = 0x63ff;
    /// BCR9, full duplex: FDRPAD, AUIFD, FDEN.
    pub(crate) const FDC_WRITABLE: u16 = 0x0007;
    /// BCR18, burst and bus control: registers are 32 bits wide.
    pub(crate) const DWIO: u16 = 1 << 7;
    /// BCR19, EEPROM: the pins. There is no EEPROM behind them, so PVALID and EEDET stay 0.
    pub(crate) const EECAS_WRITABLE: u16 = 0x0017;
    /// BCR20, software style: APERREN.
    pub(crate) const APERREN: u16 = 1 << 10;
}
