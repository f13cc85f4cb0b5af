//! Certificates: what the orchestrator shows, and what it takes an agent's for.
//!
//! TLS has verified that the authority issued a certificate. Two more things must hold of an agent's: its purpose is that
//! of a client (RFC 5280, 4.2.1.12; TLS takes one without any purpose for one of every purpose), and it names the host
//! byte for byte (DNS takes `HOST-3` and `host-3.` for `host-3`; a fleet would have three hosts of it).

use std::sync::Arc;

use quinn::Connection;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::rustls::crypto::{CryptoProvider, ring};
use quinn::rustls::pki_types::pem::PemObject;
use quinn::rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use quinn::rustls::server::WebPkiClientVerifier;
use quinn::rustls::{RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};

use super::{ALPN, TransportError};
use crate::pki::{FLEET_NAME, Identity};

/// id-kp-clientAuth, 1.3.6.1.5.5.7.3.2, in DER.
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// The key of an identity.
pub fn private_key(identity: &Identity) -> Result<PrivateKeyDer<'static>, TransportError> {
    PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(|error| unusable(&error))
}

fn unusable(error: &dyn std::fmt::Display) -> TransportError {
    TransportError::Certificates(error.to_string())
}

/// TLS 1.3 with the certificates of both sides.
pub fn server_config(identity: &Identity) -> Result<QuicServerConfig, TransportError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority(identity)?).map_err(|e| unusable(&e))?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = verifier.build().map_err(|e| unusable(&e))?;
    let certificate =
        CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).map_err(|e| unusable(&e))?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&quinn::rustls::version::TLS13])
        .map_err(|e| unusable(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], private_key(identity)?)
        .map_err(|e| unusable(&e))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    QuicServerConfig::try_from(tls).map_err(|e| unusable(&e))
}

fn authority(identity: &Identity) -> Result<CertificateDer<'static>, TransportError> {
    CertificateDer::from_pem_slice(identity.authority_pem.as_bytes()).map_err(|e| unusable(&e))
}

/// Says whose certificate a connection has.
pub struct Judge {
    authority: TrustAnchor<'static>,
    provider: CryptoProvider,
}

impl Judge {
    /// A judge of certificates of the authority of `identity`.
    pub fn new(identity: &Identity) -> Result<Self, TransportError> {
        let authority = authority(identity)?;
        let anchor = webpki::anchor_from_trusted_cert(&authority).map_err(|e| unusable(&e))?;
        Ok(Self { authority: anchor.to_owned(), provider: ring::default_provider() })
    }

    /// Whether the certificate of the other side, which TLS has verified, is one for agents and names `name`, or any agent.
    pub fn is_for(&self, connection: &Connection, name: &str) -> Result<(), TransportError> {
        let chain =
            connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let other = || TransportError::Name { name: name.to_owned() };
        let chain = chain.ok_or_else(other)?;
        let (leaf, intermediates) = chain.split_first().ok_or_else(other)?;
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| other())?;
        certificate
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                std::slice::from_ref(&self.authority),
                intermediates,
                UnixTime::now(),
                KeyUsage::required(CLIENT_AUTH),
                None,
                None,
            )
            .map_err(|_| TransportError::Purpose)?;
        let is_named = certificate.valid_dns_names().any(|certified| [name, FLEET_NAME].contains(&certified));
        if is_named { Ok(()) } else { Err(other()) }
    }
}
