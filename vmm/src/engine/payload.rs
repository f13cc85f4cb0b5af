//! The payload program as a KVM guest: its ELF image, and what it is told before its first instruction.

use super::guest::{GuestError, Load, Platform};
use crate::boot::{Program, boot_info};
use crate::config::EndConfig;
use crate::image;
use crate::kvm::Entry;
use crate::memory::SharedPages;

/// The payload program.
pub struct Payload;

impl Load for Payload {
    fn load(
        &self,
        config: &EndConfig,
        program: &Program,
        pages: &SharedPages,
        platform: Platform,
    ) -> Result<Entry, GuestError> {
        let entry = image::load(program.image(), pages.memory(), config.memory)?;
        pages.write_boot_info(&boot_info(config, program, platform.adapter_base, platform.tsc_hz))?;
        Ok(entry)
    }
}
