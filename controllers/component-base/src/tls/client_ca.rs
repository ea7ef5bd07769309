//! The CA of clients: asked for in the handshake, applied at each request.
//!
//! In the handshake a client proves only that it holds the key of the certificate it shows. Whether that certificate is good is a
//! question of the moment (the clock, the CA in force) and of authentication: a bad one is answered with 401, as upstream does, and a
//! kept connection does not outlive its certificate. Upstream: `k8s.io/apiserver/pkg/authentication/request/x509`,
//! `ClientAuth: tls.RequestClientCert` in `k8s.io/apiserver/pkg/server/secure_serving.go`.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};

use super::{TlsError, certificates};

/// A bundle of CA certificates.
pub struct ClientCa {
    roots: Vec<(CertificateDer<'static>, Range<i64>)>,
    subjects: Vec<DistinguishedName>,
    /// Of the roots that are valid now, and from when to when that set stays the same.
    verifier: Mutex<Option<(Range<i64>, Arc<dyn ClientCertVerifier>)>>,
}

impl ClientCa {
    /// Reads a bundle (PEM).
    ///
    /// # Errors
    /// When it holds no certificate, or one that is no CA's.
    pub fn parse(pem: &[u8]) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        let mut roots = Vec::new();
        for certificate in certificates("client CA", pem)? {
            let validity = validity(&certificate).ok_or_else(|| TlsError::Pem {
                what: "client CA".into(),
                message: "a certificate cannot be parsed".into(),
            })?;
            store.add(certificate.clone())?;
            roots.push((certificate, validity));
        }
        Ok(Self {
            subjects: store.subjects(),
            roots,
            verifier: Mutex::new(None),
        })
    }

    /// Whether a chain (the client's own certificate first) is good for a client now. The answer is true within the returned seconds
    /// since the epoch, as long as this CA is in force.
    ///
    /// # Errors
    /// When it is not, by rustls' reasons.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Result<Range<i64>, rustls::Error> {
        let (end_entity, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        let seconds = now.as_second();
        let (mut window, verifier) = self.verifier(seconds)?;
        let since_epoch = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        verifier.verify_client_cert(
            end_entity,
            intermediates,
            UnixTime::since_unix_epoch(since_epoch),
        )?;
        // Narrower than need be where a certificate was shown that the chain does not use; then it is verified more often.
        for certificate in chain {
            let validity = validity(certificate).ok_or(rustls::Error::InvalidCertificate(
                CertificateError::BadEncoding,
            ))?;
            window = window.start.max(validity.start)..window.end.min(validity.end);
        }
        Ok(window)
    }

    fn verifier(
        &self,
        now: i64,
    ) -> Result<(Range<i64>, Arc<dyn ClientCertVerifier>), rustls::Error> {
        let mut current = self
            .verifier
            .lock()
            .expect("no panic while the lock is held");
        if let Some((window, verifier)) = current.as_ref()
            && window.contains(&now)
        {
            return Ok((window.clone(), verifier.clone()));
        }
        // Libraries of TLS trust a root beyond its own end; Go, and so upstream, does not.
        let mut store = RootCertStore::empty();
        let mut window = i64::MIN..i64::MAX;
        for (root, validity) in &self.roots {
            if validity.contains(&now) {
                store.add(root.clone())?;
            }
            for edge in [validity.start, validity.end] {
                if edge <= now {
                    window.start = window.start.max(edge);
                } else {
                    window.end = window.end.min(edge);
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier: Arc<dyn ClientCertVerifier> =
            WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
                .build()
                .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        *current = Some((window.clone(), verifier.clone()));
        Ok((window, verifier))
    }

    /// What the handshake needs of it.
    pub(super) fn handshake(&self, algorithms: WebPkiSupportedAlgorithms) -> RequestCertificate {
        RequestCertificate {
            subjects: self.subjects.clone(),
            algorithms,
        }
    }
}

/// The second a certificate begins to be valid, and the one after its last.
fn validity(certificate: &[u8]) -> Option<Range<i64>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = parsed.validity();
    Some(validity.not_before.timestamp()..validity.not_after.timestamp().saturating_add(1))
}

/// Asks for a certificate in the handshake, and has the client prove that it holds the key.
#[derive(Debug)]
pub(super) struct RequestCertificate {
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for RequestCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    /// No judgement here: [`ClientCa::verify`] is asked at each request.
    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
