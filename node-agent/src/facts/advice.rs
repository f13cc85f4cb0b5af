//! For each thing that is missing, one sentence: what is wrong and what to do about it. Commands are Debian's
//! where they differ between distributions.

use std::io;

use nix::errno::Errno;

use crate::facts::cpu::Processor;

/// `/dev/kvm` could not be opened.
pub fn kvm(error: &io::Error, processor: &Processor) -> String {
    let module = match (processor.vmx, processor.svm) {
        (true, _) => Some("kvm_intel"),
        (false, true) => Some("kvm_amd"),
        (false, false) => None,
    };
    match (error.raw_os_error().map(Errno::from_raw), module) {
        (Some(Errno::EACCES | Errno::EPERM), _) => "/dev/kvm exists and may not be opened: add the user to its group \
             (Debian: adduser $USER kvm, elsewhere: usermod -aG kvm $USER) and log in again; in a container, give \
             the device to it"
            .to_owned(),
        (Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV), Some(module)) => format!(
            "there is no working /dev/kvm, and the CPU could have one: modprobe {module}; if that fails, switch \
             virtualisation on in the firmware; in a container, give /dev/kvm to it"
        ),
        (Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV), None) => "there is no working /dev/kvm, and the CPU \
             shows neither VMX nor SVM: switch virtualisation on in the firmware, or, in a virtual machine, nested \
             virtualisation in its hypervisor"
            .to_owned(),
        _ => format!("/dev/kvm can't be opened ({error}): see the kernel's messages (dmesg)"),
    }
}

/// Guests can be created and don't run: what to do, after the reason.
pub const GUESTS: &str = ". Native and same-stack arms run all the same; the kernel's messages (dmesg) may say more, and in \
                          a virtual machine another or a newer kernel or hypervisor may run them";

/// `/dev/net/tun` could not be opened.
pub fn tun(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => {
            "/dev/net/tun exists and may not be opened: chmod 666 /dev/net/tun, as distributions have it (creating a \
             TAP asks for CAP_NET_ADMIN all the same), or run as root; in a container, give the device to it"
                .to_owned()
        }
        Some(Errno::ENOENT) => "there is no /dev/net/tun: modprobe tun; in a container, give the device to it \
             (--device /dev/net/tun)"
            .to_owned(),
        Some(Errno::ENODEV | Errno::ENXIO) => {
            "/dev/net/tun has no driver behind it: modprobe tun, or boot a kernel with CONFIG_TUN".to_owned()
        }
        _ => format!("/dev/net/tun can't be opened ({error}): see the kernel's messages (dmesg)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(errno: Errno) -> io::Error {
        errno.into()
    }

    #[test]
    fn a_forbidden_device_is_a_matter_of_the_group() {
        let text = kvm(&os(Errno::EACCES), &Processor::default());
        assert!(text.contains("adduser $USER kvm") && text.contains("usermod -aG kvm"), "{text}");
        assert!(tun(&os(Errno::EACCES)).contains("chmod 666 /dev/net/tun"));
    }

    #[test]
    fn a_missing_device_is_a_matter_of_module_or_firmware() {
        let intel = Processor { vmx: true, ..Processor::default() };
        let amd = Processor { svm: true, ..Processor::default() };
        assert!(kvm(&os(Errno::ENOENT), &intel).contains("modprobe kvm_intel"));
        assert!(kvm(&os(Errno::ENODEV), &amd).contains("modprobe kvm_amd"));
        let neither = kvm(&os(Errno::ENOENT), &Processor::default());
        assert!(neither.contains("neither VMX nor SVM") && !neither.contains("modprobe"), "{neither}");
        assert!(tun(&os(Errno::ENOENT)).contains("modprobe tun"));
        assert!(tun(&os(Errno::ENODEV)).contains("CONFIG_TUN"));
    }

    #[test]
    fn anything_else_keeps_the_systems_word_and_all_are_one_line() {
        assert!(kvm(&os(Errno::EMFILE), &Processor::default()).contains("Too many open files"));
        assert!(tun(&os(Errno::EMFILE)).contains("Too many open files"));
        for errno in [Errno::EACCES, Errno::ENOENT, Errno::ENODEV, Errno::EIO] {
            for text in [kvm(&os(errno), &Processor::default()), tun(&os(errno))] {
                assert!(!text.contains('\n') && !text.contains("  "), "{text}");
            }
        }
    }
}
