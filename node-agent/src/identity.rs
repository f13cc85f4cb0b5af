//! The agent's certificates: who it is, and whom it obeys.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use toll_protocol::file::{Content, FileError};

use crate::file;

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
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![protocol.to_vec()];
        Ok(tls)
    }
}
