//! Stateless resets (RFC 9000, 10.3): an orchestrator that was killed and started again knows nothing of the connections
//! that its agents still believe in. It can say so at their next packet, instead of leaving them to wait for their idle
//! timeout, if it makes the same tokens as the process before it: so their key is derived from the private key.

use std::sync::Arc;

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use rand::Rng;
use ring::hmac;

/// Length of a connection id, in bytes.
const LENGTH: usize = 8;

/// The transport of an endpoint whose private key this is (PKCS #8, DER).
pub fn endpoint_config(private_key: &[u8]) -> EndpointConfig {
    let secret =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, private_key), b"toll: key of stateless resets");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref())));
    config.cid_generator(|| Box::new(AnyId));
    config
}

/// Connection ids without a mark of the process that made them: quinn's default takes those of another process for
/// noise, and does not answer.
struct AnyId;

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; LENGTH];
        rand::rng().fill_bytes(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
