//! Driver, speed and offloads of an interface by SIOCETHTOOL (linux/ethtool.h), its MTU by SIOCGIFMTU
//! (netdevice(7)).
//!
//! Why ioctls: the netlink interface that the `ethtool` crate speaks doesn't give the driver's name, needs an async
//! runtime for one question, and is absent from kernels without CONFIG_ETHTOOL_NETLINK. /sys/class/net shows the
//! network namespace in which /sys was mounted, which in a lab is another than the agent's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_GLINKSETTINGS: u32 = 0x4c;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// `SPEED_UNKNOWN` of linux/ethtool.h.
const SPEED_UNKNOWN: u32 = u32::MAX;
/// `sizeof(struct ethtool_drvinfo)` in words.
const DRVINFO_WORDS: usize = 49;
/// `sizeof(struct ethtool_link_settings)` in words; three bitmaps of link modes follow it.
const LINK_SETTINGS_WORDS: usize = 12;
/// More features than any kernel has (77 in Linux 6.18): a bound on what is allocated.
const MAX_FEATURES: usize = 4_096;

/// An interface that can be asked.
#[derive(Debug)]
pub struct Interface {
    name: [libc::c_char; libc::IFNAMSIZ],
    socket: OwnedFd,
}

impl Interface {
    /// The interface called `name`, which may or may not exist.
    ///
    /// # Errors
    /// `InvalidInput` if that can't be a name, or the system's word on socket(2).
    pub fn open(name: &str) -> io::Result<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut padded = [0; libc::IFNAMSIZ];
        for (to, from) in padded.iter_mut().zip(bytes) {
            *to = libc::c_char::from_ne_bytes([*from]);
        }
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { name: padded, socket })
    }

    /// MTU in bytes.
    ///
    /// # Errors
    /// The system's word; ENODEV if there is no such interface.
    pub fn mtu(&self) -> io::Result<u32> {
        let mut request =
            libc::ifreq { ifr_name: self.name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 } };
        // SAFETY: SIOCGIFMTU reads the name and writes ifru_mtu of the ifreq that the pointer leads to.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above succeeded, so that is the field in use.
        u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Name of its driver: `veth`, `ixgbe`.
    ///
    /// # Errors
    /// The system's word; EOPNOTSUPP if the driver says nothing.
    pub fn driver(&self) -> io::Result<String> {
        let mut info = [0; DRVINFO_WORDS];
        info[0] = ETHTOOL_GDRVINFO;
        self.ethtool(&mut info)?;
        // The name is the 32 bytes after the command.
        Some(text(&info[1..9])).filter(|name| !name.is_empty()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Speed in Mb/s, or `None` where the driver doesn't know it.
    ///
    /// # Errors
    /// The system's word; EOPNOTSUPP if the driver has no link settings.
    pub fn speed(&self) -> io::Result<Option<u32>> {
        // Asked with a length of 0 for the bitmaps, the kernel answers their length, negated.
        let mut probe = [0; LINK_SETTINGS_WORDS];
        probe[0] = ETHTOOL_GLINKSETTINGS;
        self.ethtool(&mut probe)?;
        let [.., words] = probe[3].to_ne_bytes();
        let words = i8::from_ne_bytes([words]).checked_neg().and_then(|words| u8::try_from(words).ok());
        let words = words.filter(|words| *words > 0).ok_or(io::ErrorKind::InvalidData)?;
        let mut settings = vec![0; LINK_SETTINGS_WORDS + 3 * usize::from(words)];
        settings[0] = ETHTOOL_GLINKSETTINGS;
        settings[3] = u32::from_ne_bytes([0, 0, 0, words]);
        self.ethtool(&mut settings)?;
        Ok(Some(settings[1]).filter(|speed| ![0, SPEED_UNKNOWN].contains(speed)))
    }

    /// Names of the features that are on, offloads among them.
    ///
    /// # Errors
    /// The system's word.
    pub fn features(&self) -> io::Result<Vec<String>> {
        let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        // The 64-bit mask of the string sets that are asked for starts at the third word.
        let [low, high] = halves(1 << ETH_SS_FEATURES);
        (info[2], info[3]) = (low, high);
        self.ethtool(&mut info)?;
        let count = info[4] as usize;
        if count == 0 || count > MAX_FEATURES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let words_a_name = ETH_GSTRING_LEN / size_of::<u32>();
        let mut strings = vec![0; 3 + count * words_a_name];
        (strings[0], strings[1], strings[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, info[4]);
        self.ethtool(&mut strings)?;
        let blocks = count.div_ceil(32);
        let mut features = vec![0; 2 + blocks * 4];
        features[0] = ETHTOOL_GFEATURES;
        features[1] = u32::try_from(blocks).map_err(|_| io::ErrorKind::InvalidData)?;
        self.ethtool(&mut features)?;
        let active: Vec<u32> = features[2..].chunks_exact(4).map(|block| block[2]).collect();
        Ok(named(&strings[3..], &active))
    }

    /// One SIOCETHTOOL. `structure` is a whole structure of linux/ethtool.h as words, its command in the first
    /// and its length fields true: the kernel writes no more than they allow.
    fn ethtool(&self, structure: &mut [u32]) -> io::Result<()> {
        let data = structure.as_mut_ptr().cast();
        let mut request =
            libc::ifreq { ifr_name: self.name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
        // SAFETY: the ifreq and the structure it leads to are writable and outlive the call; each caller in this
        // file sizes the structure by what its command makes the kernel write. ETHTOOL_GSTRINGS alone ignores the
        // length it is given: it writes as many strings as ETHTOOL_GSSET_INFO has told, a constant of the kernel.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The two words of a 64-bit value as they lie in memory.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

/// Bytes of `words` up to the first zero byte.
fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Names, of [`ETH_GSTRING_LEN`] bytes each, whose bit is set in `active`.
fn named(names: &[u32], active: &[u32]) -> Vec<String> {
    let names = names.chunks_exact(ETH_GSTRING_LEN / size_of::<u32>()).map(text).enumerate();
    let is_on = |bit: usize| active.get(bit / 32).is_some_and(|word| word >> (bit % 32) & 1 == 1);
    names.filter(|(bit, name)| is_on(*bit) && !name.is_empty()).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> [u32; 8] {
        let mut bytes = [0; ETH_GSTRING_LEN];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[word * 4 + byte])))
    }

    #[test]
    fn features_are_named_by_their_bit() {
        let mut names = Vec::new();
        for bit in 0..40 {
            names.extend(name(&format!("feature-{bit}")));
        }
        assert_eq!(named(&names, &[0b101, 1 << 7]), ["feature-0", "feature-2", "feature-39"]);
        assert!(named(&names, &[]).is_empty());
    }

    #[test]
    fn a_text_ends_at_its_zero_byte_or_with_its_words() {
        assert_eq!(text(&name("veth")), "veth");
        assert_eq!(text(&name(&"x".repeat(32))), "x".repeat(32));
    }

    #[test]
    fn a_name_that_can_be_none_is_refused_and_an_unknown_one_has_no_mtu() {
        for bad in ["", "sixteen-bytes-no", "a\0b"] {
            assert!(Interface::open(bad).is_err(), "{bad:?}");
        }
        let unknown = Interface::open("no-such-nic").expect("could be a name");
        assert_eq!(unknown.mtu().expect_err("unknown").raw_os_error(), Some(libc::ENODEV));
    }
}
