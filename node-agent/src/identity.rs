//! The agent's certificates: who it is, and whom it obeys.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use toll_protocol::file::{Content, FileError};
use webpki::{EndEntityCert, KeyUsage};

use crate::file;

/// id-kp-serverAuth, 1.3.6.1.5.5.7.3.1, in DER.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];

/// Why the certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A PEM file can't be used.
    #[error("{what} {} can't be used", path.display())]
    Pem {
        /// `CA certificate`, `certificate`, `private key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A PEM file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The authority's certificate is of no use.
    #[error("the authority's certificate can't be used")]
    Authority(#[from] webpki::Error),
    /// The certificates don't make a configuration.
    #[error("the certificates can't be used")]
    Tls(#[from] rustls::Error),
}

/// The certificates of one agent, read once.
#[derive(Debug)]
pub struct Identity {
    ca: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads three PEM files, each once: they may be descriptors such as `/proc/self/fd/3`.
    ///
    /// # Errors
    /// [`IdentityError::File`], [`IdentityError::Pem`] or [`IdentityError::NoCertificate`].
    pub fn read(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let error = |what, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Pem { what, path, source }
        };
        let chain = file::read(certificate, Content::CERTIFICATE)?;
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(error("certificate", certificate))?;
        if chain.is_empty() {
            return Err(IdentityError::NoCertificate { path: certificate.to_owned() });
        }
        Ok(Self {
            ca: CertificateDer::from_pem_slice(file::read(ca, Content::CERTIFICATE)?.as_bytes())
                .map_err(error("CA certificate", ca))?,
            chain,
            key: PrivateKeyDer::from_pem_slice(file::read(key, Content::KEY)?.as_bytes())
                .map_err(error("private key", key))?,
        })
    }

    /// TLS 1.3 with both sides' certificates; `protocol` is what is spoken over it (RFC 7301).
    ///
    /// # Errors
    /// [`IdentityError::Tls`].
    pub fn client_config(&self, protocol: &[u8]) -> Result<rustls::ClientConfig, IdentityError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone())?;
        let provider = Arc::new(ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![protocol.to_vec()];
        Ok(tls)
    }

    /// Who says whether a certificate is an orchestrator's.
    ///
    /// # Errors
    /// [`IdentityError::Authority`].
    pub fn judge(&self) -> Result<Judge, IdentityError> {
        let authority = webpki::anchor_from_trusted_cert(&self.ca)?.to_owned();
        Ok(Judge { authority, provider: ring::default_provider() })
    }
}

/// Says whether a certificate is an orchestrator's.
#[derive(Debug)]
pub struct Judge {
    authority: TrustAnchor<'static>,
    provider: CryptoProvider,
}

impl Judge {
    /// Whether the first certificate of `chain`, which TLS has verified, is one for servers (RFC 5280, 4.2.1.12). TLS takes
    /// one that names no purpose for one of every purpose: an agent's, by an authority that leaves purposes out, could give
    /// orders to the others.
    pub fn is_an_orchestrators(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else { return false };
        let Ok(certificate) = EndEntityCert::try_from(leaf) else { return false };
        let verified = certificate.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            std::slice::from_ref(&self.authority),
            intermediates,
            UnixTime::now(),
            KeyUsage::required(SERVER_AUTH),
            None,
            None,
        );
        verified.is_ok()
    }
}
