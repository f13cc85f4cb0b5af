//! Certificates: an authority, and identities that it issues. Agents and orchestrator believe each other by it
//! alone (mutual TLS).

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The name in the orchestrator's certificate.
pub const SERVER_NAME: &str = "toll-orchestrator";

/// Why a certificate can't be made.
#[derive(Debug, thiserror::Error)]
#[error("a certificate for {name} can't be made")]
pub struct PkiError {
    name: String,
    source: rcgen::Error,
}

/// Who a process is, in PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The name in its certificate.
    pub name: String,
    /// The authority's certificate.
    pub authority_pem: String,
    /// Its own certificate.
    pub certificate_pem: String,
    /// Its private key (PKCS #8).
    pub key_pem: String,
}

/// An authority made for one lab or fleet.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn new() -> Result<Self, PkiError> {
        let failed = |source| PkiError { name: "the authority".into(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Toll authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed)?;
        Ok(Self { issuer })
    }

    /// Issues a certificate for `name`, a DNS name, good for either side of a connection.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue(&self, name: &str) -> Result<Identity, PkiError> {
        let failed = |source| PkiError { name: name.to_owned(), source };
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Identity {
            name: name.to_owned(),
            authority_pem: self.issuer.pem(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}
