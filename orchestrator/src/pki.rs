//! Certificates: an authority, and identities that it issues. Agents and orchestrator believe each other by it
//! alone (mutual TLS).

pub mod files;

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The name in the orchestrator's certificate.
pub const SERVER_NAME: &str = "toll-orchestrator";

/// The name in a certificate whose holder may speak for any host: one Secret for all agents of a DaemonSet.
pub const FLEET_NAME: &str = "any-agent.toll";

/// A certificate is good a little before it is made: clocks of hosts differ.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// How long certificates are good that nobody asked another time for: ten years.
pub const DEFAULT_DAYS: u32 = 3650;

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
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// A new authority, good for `days`.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn new(days: u32) -> Result<Self, PkiError> {
        let failed = |source| PkiError { name: "the authority".into(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Toll authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, days);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem })
    }

    /// The authority whose certificate and private key these are, in PEM.
    ///
    /// # Errors
    /// [`PkiError`] if they are none.
    pub fn of(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let failed = |source| PkiError { name: "anybody, by this authority,".into(), source };
        let key = KeyPair::from_pem(key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(failed)?;
        Ok(Self { issuer, certificate_pem: certificate_pem.to_owned() })
    }

    /// Its certificate and its private key, in PEM.
    pub fn pem(&self) -> (&str, String) {
        (&self.certificate_pem, self.issuer.key().serialize_pem())
    }

    /// Issues a certificate for `name`, a DNS name, good for `days`: for the side of a connection that listens if it
    /// is [`SERVER_NAME`], else for an agent's.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue(&self, name: &str, days: u32) -> Result<Identity, PkiError> {
        let purpose = if name == SERVER_NAME {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        };
        self.issue_for(name, days, vec![purpose])
    }

    /// The same, for these purposes.
    pub(crate) fn issue_for(
        &self,
        name: &str,
        days: u32,
        purposes: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<Identity, PkiError> {
        let failed = |source| PkiError { name: name.to_owned(), source };
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        valid_for(&mut params, days);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Identity {
            name: name.to_owned(),
            authority_pem: self.certificate_pem.clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// Whether a host may have this name. RFC 1123, 2.1: labels of letters, digits and `-`, in lower case as Kubernetes writes them; nothing that could lead
/// out of a directory.
pub fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + Duration::from_secs(u64::from(days) * 24 * 3600)).into();
}
