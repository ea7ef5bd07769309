//! Who is at the other end of a connection, looked at anew for each request.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;

use super::access::UserInfo;
use super::connections::Slot;
use crate::subject::{Subject, SubjectError};
use crate::tls::{ClientCa, ServerTls};

/// The key of a user's extra attributes that says which certificate it was. Upstream: `user.CredentialIDKey`.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Why a client certificate is nobody's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertificateRefused {
    /// It is not valid now, or not for this CA.
    #[error("verifying certificate failed: {0}")]
    Verify(#[from] rustls::Error),
    /// It cannot be read.
    #[error("the certificate cannot be parsed")]
    Parse,
    /// Its name is not accepted.
    #[error(transparent)]
    Subject(#[from] SubjectError),
}

/// The other end of a connection; an extension of every request.
#[derive(Clone)]
pub struct Peer {
    /// The address.
    pub address: SocketAddr,
    /// What it showed in the handshake.
    pub(super) certificate: Option<Arc<PeerCertificate>>,
    /// The connection's place among all.
    pub(super) slot: Arc<Slot>,
}

/// A chain of certificates whose key the peer holds.
pub(super) struct PeerCertificate {
    chain: Vec<CertificateDer<'static>>,
    tls: ServerTls,
    last: Mutex<Option<Checked>>,
}

/// A judgement, and what it depends on.
struct Checked {
    ca: Arc<ClientCa>,
    seconds: Range<i64>,
    user: Result<Option<UserInfo>, CertificateRefused>,
}

impl PeerCertificate {
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, tls: ServerTls) -> Self {
        Self {
            chain,
            tls,
            last: Mutex::new(None),
        }
    }

    /// The certificate's user by the clock and the CA now in force; `None` when it names nobody, or no CA is in force.
    ///
    /// # Errors
    /// When the certificate is no good; the request is then not authenticated by it, and not anonymous either.
    pub(super) fn user(&self, now: Timestamp) -> Result<Option<UserInfo>, CertificateRefused> {
        let Some(ca) = self.tls.client_ca() else {
            return Ok(None);
        };
        let mut last = self.last.lock().expect("no panic while the lock is held");
        if let Some(known) = last.as_ref()
            && Arc::ptr_eq(&known.ca, &ca)
            && known.seconds.contains(&now.as_second())
        {
            return known.user.clone();
        }
        let verified = ca.verify(&self.chain, now);
        let checked = match verified {
            Ok(seconds) => Checked {
                ca,
                seconds,
                user: self.chain.first().map_or(Ok(None), |c| user_of(c)),
            },
            // It may become valid; once a second is often enough.
            Err(error) => Checked {
                ca,
                seconds: now.as_second()..now.as_second() + 1,
                user: Err(error.into()),
            },
        };
        let user = checked.user.clone();
        *last = Some(checked);
        user
    }
}

/// The user a client certificate (DER) names: CN is the user, each O a group. `None` when it has no CN.
///
/// # Errors
/// When it cannot be parsed, or its name is not accepted. See [`Subject::parse`].
pub fn user_of(der: &[u8]) -> Result<Option<UserInfo>, CertificateRefused> {
    let (rest, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|_| CertificateRefused::Parse)?;
    if !rest.is_empty() {
        return Err(CertificateRefused::Parse);
    }
    let subject = Subject::parse(certificate.subject().as_raw())?;
    if subject.common_name().is_empty() {
        return Ok(None);
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let id = format!("X509SHA256={hex}");
    Ok(Some(UserInfo {
        username: subject.common_name().to_string(),
        uid: subject.uid().unwrap_or_default().to_string(),
        groups: subject
            .organizations()
            .iter()
            .map(ToString::to_string)
            .collect(),
        extra: [(CREDENTIAL_ID.to_string(), vec![id])].into(),
    }))
}
