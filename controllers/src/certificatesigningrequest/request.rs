//! What a PKCS#10 request asks for, and whether a signer may give it. Pure.
//!
//! A request is read once, by a strict parser, and what was read is all that exists of it from then on: a certificate's name, key and
//! alternative names are written anew from it. What is not understood refuses the request, it is never copied and never left out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base64::Engine as _;
use component_base::der::{self, DerError, Reader};
use component_base::subject::{Subject, SubjectError};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::{
    KUBE_APISERVER_CLIENT, KUBE_APISERVER_CLIENT_KUBELET, KUBELET_SERVING, LEGACY_UNKNOWN,
};

/// Longest request that is looked at, in bytes of PEM; one with an RSA key of 8192 bits and a hundred names has a tenth of it.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Why a request was refused. Where upstream has the rule, the text is upstream's, since it ends up in a condition.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum RequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    #[error("the certificate request is longer than {MAX_REQUEST_BYTES} bytes")]
    TooLong,
    #[error("the certificate request is not valid DER: {0}")]
    Der(#[from] DerError),
    #[error("the certificate request's version is not supported")]
    Version,
    #[error("the certificate request's key or signature algorithm is not supported")]
    Algorithm,
    #[error("unable to verify certificate request signature")]
    Signature,
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error("subject attribute {0} is not supported")]
    Attribute(String),
    #[error("subject has a relative name of several attributes")]
    MultiValued,
    #[error("certificate request contains duplicate requested extensions")]
    DuplicateExtensions,
    #[error("subjectAltNames of this type (tag {0:#04x}) are not allowed")]
    SanType(u8),
    #[error("subjectAltName is malformed")]
    San,
    #[error("subject organization is not system:nodes")]
    OrganizationNotSystemNodes,
    #[error("subject common name does not begin with system:node:")]
    CommonNameNotSystemNode,
    #[error("DNS or IP subjectAltName is required")]
    DnsOrIpSanRequired,
    #[error("DNS subjectAltNames are not allowed")]
    DnsSanNotAllowed,
    #[error("Email subjectAltNames are not allowed")]
    EmailSanNotAllowed,
    #[error("IP subjectAltNames are not allowed")]
    IpSanNotAllowed,
    #[error("URI subjectAltNames are not allowed")]
    UriSanNotAllowed,
    #[error("usages did not match [{0}]")]
    Usages(String),
    #[error("invalid usage for client certificate: {0}")]
    InvalidClientUsage(String),
    #[error("missing required usage for client certificate: client auth")]
    MissingClientAuth,
    #[error("unrecognized signerName: {0:?}")]
    Signer(String),
}

/// A parsed request. Nothing in it is a copy of what came, except the key's bits, which its signature proves.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Request {
    pub(super) subject: Subject,
    /// SubjectPublicKeyInfo, written anew around the key.
    pub(super) public_key_info: Vec<u8>,
    pub(super) dns_names: Vec<String>,
    pub(super) ip_addresses: Vec<IpAddr>,
    pub(super) emails: Vec<String>,
    pub(super) uris: Vec<String>,
}

/// `extensionRequest` of PKCS#9, 1.2.840.113549.1.9.14.
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14];
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];
/// `[0]`, constructed.
const ATTRIBUTES: u8 = 0xa0;

/// A request taken apart, not understood yet.
pub(super) struct Signed<'a> {
    info: &'a [u8],
    signature_algorithm: &'a [u8],
    signature: &'a [u8],
    subject: &'a [u8],
    key_algorithm: &'a [u8],
    key: &'a [u8],
    attributes: Reader<'a>,
}

impl<'a> Signed<'a> {
    pub(super) fn read(der: &'a [u8]) -> Result<Self, RequestError> {
        let mut outer = Reader::new(der);
        let mut parts = outer.enter(der::SEQUENCE)?;
        outer.finish()?;
        let info = parts.expect(der::SEQUENCE)?;
        let signature_algorithm = parts.expect(der::SEQUENCE)?.content;
        let signature = parts.whole_bits()?;
        parts.finish()?;

        let mut reader = Reader::new(info.content);
        if reader.expect(der::INTEGER)?.content != [0] {
            return Err(RequestError::Version);
        }
        let subject = reader.expect(der::SEQUENCE)?.raw;
        let mut key_info = reader.enter(der::SEQUENCE)?;
        let key_algorithm = key_info.expect(der::SEQUENCE)?.content;
        let key = key_info.whole_bits()?;
        key_info.finish()?;
        let attributes = reader.enter(ATTRIBUTES)?;
        reader.finish()?;
        Ok(Self {
            info: info.raw,
            signature_algorithm,
            signature,
            subject,
            key_algorithm,
            key,
            attributes,
        })
    }

    /// What it asks for; who asks is not looked at.
    pub(super) fn understand(self) -> Result<Request, RequestError> {
        let mut request = Request {
            subject: Subject::parse(self.subject)?,
            public_key_info: der::sequence(&[
                der::tlv(der::SEQUENCE, self.key_algorithm),
                der::bit_string(self.key),
            ]),
            ..Request::default()
        };
        request.check_subject()?;
        request.read_attributes(self.attributes)?;
        Ok(request)
    }
}

impl Request {
    /// Reads `spec.request`, and checks that who made it holds the key.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let der = decode_pem(pem)?;
        let signed = Signed::read(&der)?;
        verify(
            signed.key_algorithm,
            signed.key,
            signed.signature_algorithm,
            signed.info,
            signed.signature,
        )?;
        signed.understand()
    }

    /// DIFFERS: upstream leaves attributes it does not know out of the certificate, and reads relative names of several attributes
    /// (Go writes several groups so); here nothing is signed that was not asked for in the plainest form.
    fn check_subject(&self) -> Result<(), RequestError> {
        if let Some(unknown) = self.subject.unknown().first() {
            return Err(RequestError::Attribute(unknown.clone()));
        }
        if self.subject.uid().is_some() {
            return Err(RequestError::Attribute("UID".into()));
        }
        if self.subject.is_multi_valued() {
            return Err(RequestError::MultiValued);
        }
        Ok(())
    }

    /// Only the alternative names are taken from the extensions asked for; usages and constraints come from the API object.
    fn read_attributes(&mut self, mut attributes: Reader<'_>) -> Result<(), RequestError> {
        let mut seen: BTreeSet<&[u8]> = BTreeSet::new();
        while !attributes.is_empty() {
            let mut attribute = attributes.enter(der::SEQUENCE)?;
            let id = attribute.expect(der::OID)?.content;
            let mut values = attribute.enter(der::SET)?;
            attribute.finish()?;
            if id != EXTENSION_REQUEST {
                continue;
            }
            let mut extensions = values.enter(der::SEQUENCE)?;
            values.finish()?;
            while !extensions.is_empty() {
                let mut extension = extensions.enter(der::SEQUENCE)?;
                let id = extension.expect(der::OID)?.content;
                if extension.peek() == Some(der::BOOLEAN) {
                    extension.element()?;
                }
                let value = extension.expect(der::OCTET_STRING)?.content;
                extension.finish()?;
                if !seen.insert(id) {
                    return Err(RequestError::DuplicateExtensions);
                }
                if id == SUBJECT_ALTERNATIVE_NAME {
                    self.read_names(value)?;
                }
            }
        }
        Ok(())
    }

    fn read_names(&mut self, value: &[u8]) -> Result<(), RequestError> {
        let mut reader = Reader::new(value);
        let mut names = reader.enter(der::SEQUENCE)?;
        reader.finish()?;
        while !names.is_empty() {
            let name = names.element()?;
            let text = || {
                let text = std::str::from_utf8(name.content).map_err(|_| RequestError::San)?;
                if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(RequestError::San);
                }
                Ok(text.to_string())
            };
            match name.tag {
                0x81 => self.emails.push(text()?),
                0x82 => self.dns_names.push(text()?),
                0x86 => self.uris.push(text()?),
                0x87 => self.ip_addresses.push(address(name.content)?),
                // DIFFERS: Go passes over other kinds.
                tag => return Err(RequestError::SanType(tag)),
            }
        }
        Ok(())
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, RequestError> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| RequestError::San)
}

/// The one block of a PEM text.
///
/// Parsers of PEM differ in which of several blocks, or of damaged ones, they read; admission in the API server has read the request
/// with another than this one. So there may be one `-----BEGIN` only, and no headers.
fn decode_pem(pem: &[u8]) -> Result<Vec<u8>, RequestError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
    const END: &str = "-----END CERTIFICATE REQUEST-----";
    if pem.len() > MAX_REQUEST_BYTES {
        return Err(RequestError::TooLong);
    }
    let text = std::str::from_utf8(pem).map_err(|_| RequestError::Pem)?;
    if text.matches("-----BEGIN").count() != 1 || text.matches("-----END").count() != 1 {
        return Err(RequestError::Pem);
    }
    let (before, rest) = text.split_once(BEGIN).ok_or(RequestError::Pem)?;
    let (body, after) = rest.split_once(END).ok_or(RequestError::Pem)?;
    let at_line_start = |text: &str| text.is_empty() || text.ends_with('\n');
    let at_line_end = |text: &str| text.trim_start_matches([' ', '\t', '\r']).starts_with('\n');
    if !at_line_start(before)
        || !at_line_end(body)
        || !at_line_start(body)
        || !(after.trim_matches([' ', '\t', '\r']).is_empty() || at_line_end(after))
    {
        return Err(RequestError::Pem);
    }
    let encoded: String = body.split_ascii_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|_| RequestError::Pem)
}

/// Whether the key signed the request.
///
/// DIFFERS: the kinds of keys are RSA of 2048 to 8192 bits, ECDSA over P-256 and P-384, and Ed25519; upstream knows RSA from 1024 bits,
/// P-224 and P-521, too.
fn verify(
    key_algorithm: &[u8],
    key: &[u8],
    signature_algorithm: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), RequestError> {
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let algorithm = algorithms
        .all
        .iter()
        .find(|a| {
            a.public_key_alg_id().as_ref() == key_algorithm
                && a.signature_alg_id().as_ref() == signature_algorithm
        })
        .ok_or(RequestError::Algorithm)?;
    algorithm
        .verify_signature(key, message, signature)
        .map_err(|_| RequestError::Signature)
}

const NODE_PREFIX: &str = "system:node:";

fn usages_are(
    usages: &[String],
    required: &[&str],
    without_encipherment: &[&str],
) -> Result<(), RequestError> {
    let set: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let equals = |wanted: &[&str]| set == wanted.iter().copied().collect();
    if equals(required) || equals(without_encipherment) {
        return Ok(());
    }
    let mut names = required.to_vec();
    names.sort_unstable();
    Err(RequestError::Usages(names.join(" ")))
}

/// `kubernetes.io/kube-apiserver-client-kubelet`.
fn validate_kubelet_client(request: &Request, usages: &[String]) -> Result<(), RequestError> {
    if request.subject.organizations() != ["system:nodes"] {
        return Err(RequestError::OrganizationNotSystemNodes);
    }
    if !request.dns_names.is_empty() {
        return Err(RequestError::DnsSanNotAllowed);
    }
    if !request.emails.is_empty() {
        return Err(RequestError::EmailSanNotAllowed);
    }
    if !request.ip_addresses.is_empty() {
        return Err(RequestError::IpSanNotAllowed);
    }
    if !request.uris.is_empty() {
        return Err(RequestError::UriSanNotAllowed);
    }
    if !request.subject.common_name().starts_with(NODE_PREFIX) {
        return Err(RequestError::CommonNameNotSystemNode);
    }
    let required = ["digital signature", "key encipherment", "client auth"];
    usages_are(usages, &required, &["digital signature", "client auth"])
}

/// `kubernetes.io/kubelet-serving`.
fn validate_kubelet_serving(request: &Request, usages: &[String]) -> Result<(), RequestError> {
    if request.subject.organizations() != ["system:nodes"] {
        return Err(RequestError::OrganizationNotSystemNodes);
    }
    if request.dns_names.is_empty() && request.ip_addresses.is_empty() {
        return Err(RequestError::DnsOrIpSanRequired);
    }
    if !request.emails.is_empty() {
        return Err(RequestError::EmailSanNotAllowed);
    }
    if !request.uris.is_empty() {
        return Err(RequestError::UriSanNotAllowed);
    }
    let required = ["digital signature", "key encipherment", "server auth"];
    usages_are(usages, &required, &["digital signature", "server auth"])?;
    if request.subject.common_name().starts_with(NODE_PREFIX) {
        Ok(())
    } else {
        Err(RequestError::CommonNameNotSystemNode)
    }
}

/// `kubernetes.io/kube-apiserver-client`.
fn validate_api_client(usages: &[String]) -> Result<(), RequestError> {
    let mut client_auth = false;
    for usage in usages {
        match usage.as_str() {
            "digital signature" | "key encipherment" => {}
            "client auth" => client_auth = true,
            other => return Err(RequestError::InvalidClientUsage(other.to_string())),
        }
    }
    if client_auth {
        Ok(())
    } else {
        Err(RequestError::MissingClientAuth)
    }
}

/// A request that its signer may sign; [`validate`] alone makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permitted<'a> {
    request: &'a Request,
    usages: &'a [String],
}

impl<'a> Permitted<'a> {
    pub(super) fn request(&self) -> &'a Request {
        self.request
    }

    pub(super) fn usages(&self) -> &'a [String] {
        self.usages
    }
}

/// Whether the signer a request names may sign it.
pub(super) fn validate<'a>(
    signer: &str,
    request: &'a Request,
    usages: &'a [String],
) -> Result<Permitted<'a>, RequestError> {
    match signer {
        KUBELET_SERVING => validate_kubelet_serving(request, usages)?,
        KUBE_APISERVER_CLIENT_KUBELET => validate_kubelet_client(request, usages)?,
        KUBE_APISERVER_CLIENT => validate_api_client(usages)?,
        // Upstream restricts nothing here, for who relied on it before signers had names.
        LEGACY_UNKNOWN => {}
        other => return Err(RequestError::Signer(other.to_string())),
    }
    Ok(Permitted { request, usages })
}

/// Whether a condition of this type stands and is true. Approval conditions may lack a status in old objects.
pub(super) fn has_condition(csr: &CertificateSigningRequest, type_: &str) -> bool {
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == type_ && (c.status == "True" || c.status.is_empty()))
}

/// Whether the request has its certificate.
pub(super) fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status
        .as_ref()
        .and_then(|s| s.certificate.as_ref())
        .is_some_and(|c| !c.0.is_empty())
}
