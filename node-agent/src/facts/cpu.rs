//! /proc/cpuinfo (x86: arch/x86/kernel/cpu/proc.c `show_cpuinfo`), of the first processor.

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Processor {
    /// `model name`.
    pub model: Option<String>,
    /// `microcode`, a hexadecimal revision.
    pub microcode: Option<String>,
    /// Whether the flags have `vmx`: Intel VT-x.
    pub vmx: bool,
    /// Whether the flags have `svm`: AMD-V.
    pub svm: bool,
}

/// Parses the text; a field that is not there is absent in the result.
pub fn parse(cpuinfo: &str) -> Processor {
    // A blank line ends a processor's block. Hosts of one socket have the same text in each.
    let block =
        || cpuinfo.lines().take_while(|line| !line.trim().is_empty()).filter_map(|line| line.split_once(':'));
    let field = |name: &str| {
        let (_, value) = block().find(|(key, _)| key.trim() == name)?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let flags = field("flags").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    Processor { model: field("model name"), microcode: field("microcode"), vmx: has("vmx"), svm: has("svm") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shortened in its flags only.
    const XEON: &str = "processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 167
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 1
microcode\t: 0x1
cpu MHz\t\t: 2599.998
flags\t\t: fpu vme de pse tsc msr pae hypervisor lahf_lm arch_capabilities
bugs\t\t: spectre_v1 spectre_v2
power management:

processor\t: 1
model name\t: another
flags\t\t: vmx
";

    #[test]
    fn the_first_processor_speaks_for_all() {
        let processor = parse(XEON);
        assert_eq!(processor.model.as_deref(), Some("Intel(R) Xeon(R) Processor"));
        assert_eq!(processor.microcode.as_deref(), Some("0x1"));
        assert!(!processor.vmx && !processor.svm);
    }

    #[test]
    fn virtualisation_is_a_whole_word_of_the_flags() {
        let flags =
            |flags: &str| parse(&format!("model name\t: x\nflags\t\t: {flags}\nvmx flags\t: vnmi svm\n"));
        assert!(flags("fpu vmx smx").vmx);
        assert!(flags("fpu svm").svm);
        let neither = flags("fpu vmxoff nosvm avx");
        assert!(!neither.vmx && !neither.svm);
    }

    #[test]
    fn what_another_architecture_leaves_out_is_absent() {
        // AArch64 has neither a model name nor microcode.
        let text = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n";
        assert_eq!(parse(text), Processor::default());
        assert_eq!(parse(""), Processor::default());
    }
}
