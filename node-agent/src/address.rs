//! Where the orchestrator is: a host by name or address, and a port. A name is looked up anew each time, since in a
//! cluster it leads elsewhere tomorrow.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// How long the resolver may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are dialled.
const MOST_ADDRESSES: usize = 8;
/// Longest name of a host (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 253;

/// Why a text names no place to dial, or a place has no address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is no host and port.
    #[error(
        "`{text}` is no address to dial: write HOST:PORT, such as `toll.example:4433`, `10.0.0.1:4433` or `[fd00::1]:4433`"
    )]
    Malformed {
        /// What was written.
        text: String,
    },
    /// The name could not be looked up.
    #[error("the host `{host}` could not be found: is the name right, and a resolver there?")]
    Lookup {
        /// The name.
        host: String,
        /// The resolver's word.
        source: std::io::Error,
    },
    /// The name has no address.
    #[error("the host `{host}` has no address")]
    NoAddress {
        /// The name.
        host: String,
    },
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// Its addresses as they are now, at most eight, in the resolver's order.
    ///
    /// # Errors
    /// [`AddressError::Lookup`] or [`AddressError::NoAddress`].
    pub async fn look_up(&self) -> Result<Vec<SocketAddr>, AddressError> {
        let Self { host, port } = self;
        let error = |source| AddressError::Lookup { host: host.clone(), source };
        let looked_up = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host.as_str(), *port)));
        let found = looked_up.await.map_err(|_| error(std::io::ErrorKind::TimedOut.into()))?;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found.map_err(error)? {
            if !addresses.contains(&address) && addresses.len() < MOST_ADDRESSES {
                addresses.push(address);
            }
        }
        if addresses.is_empty() { Err(AddressError::NoAddress { host: host.clone() }) } else { Ok(addresses) }
    }
}

impl FromStr for HostPort {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parsed = || {
            let (host, port) = text.rsplit_once(':')?;
            let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host = match bracketed {
                // An IPv6 address (RFC 3986, 3.2.2).
                Some(address) => address.parse::<std::net::Ipv6Addr>().ok().map(|_| address)?,
                None => host,
            };
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            let fits = bracketed.is_some() || host.bytes().all(is_name);
            // Digits alone: a sign would be taken too.
            let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
            let good = fits && (1..=LONGEST_NAME).contains(&host.len()) && port != 0;
            good.then(|| Self { host: host.to_owned(), port })
        };
        parsed().ok_or_else(|| AddressError::Malformed { text: text.to_owned() })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_a_port_are_taken_and_written_as_they_were() {
        for good in ["toll.example:4433", "10.0.0.1:4433", "[fd00::1]:4433", "localhost:1", "a-b_c.d:65535"] {
            let address: HostPort = good.parse().expect(good);
            assert_eq!(address.to_string(), good);
        }
    }

    #[test]
    fn what_is_no_host_and_port_is_refused_with_examples() {
        for bad in [
            "",
            "host",
            ":1",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "fd00::1:4433",
            "[fd00::1]",
            "[x]:1",
            "a b:1",
            "https://a:1",
            "a/b:1",
        ] {
            let error = bad.parse::<HostPort>().expect_err(bad).to_string();
            assert!(error.contains(bad) && error.contains("HOST:PORT"), "{error}");
        }
        assert!(format!("{}:1", "a".repeat(254)).parse::<HostPort>().is_err());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_and_one_that_is_none_is_named() {
        let local: HostPort = "localhost:4433".parse().expect("a name");
        let addresses = local.look_up().await.expect("localhost has an address");
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 4433));
        // RFC 6761, 6.4: no resolver knows it.
        let nowhere: HostPort = "nowhere.invalid:4433".parse().expect("a name");
        let error = nowhere.look_up().await.expect_err("no such name").to_string();
        assert!(error.contains("`nowhere.invalid`"), "{error}");
    }
}
