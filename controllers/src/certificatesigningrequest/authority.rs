//! A CA on disk, and what it makes of a request: subject, key and names of the request, usages and lifetime of the policy.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use component_base::der;
use component_base::tls::{self, TlsError};
use jiff::Timestamp;
use rustls::SignatureScheme;
use rustls::sign::SigningKey;
use x509_parser::extensions::ParsedExtension;

use super::request::{Permitted, Request};
use crate::options::CaFiles;

/// Certificates are valid from this long ago, for clocks that differ.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// A certificate shorter than this gets its whole time after now.
const SHORT: Duration = Duration::from_secs(8 * 3600);
/// The shortest lifetime anybody gets.
const MIN_DURATION: Duration = Duration::from_secs(10 * 60);

/// Why a CA cannot be used or does not sign.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    #[error("error reading CA file {path}: {source}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("CA certificate {path} cannot be parsed: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("CA certificate {0} and its key do not match")]
    Mismatch(PathBuf),
    #[error("expected one certificate in {0}")]
    Several(PathBuf),
    #[error("CA key: {0}")]
    Key(#[from] rustls::Error),
    #[error("the CA key's kind is not supported")]
    Algorithm,
    #[error("the signer has expired: NotAfter={0}")]
    Expired(Timestamp),
    #[error("unrecognized usage values: [{0}]")]
    Usages(String),
}

/// A CA.
pub(super) struct Authority {
    /// DER of the subject, the issuer of what it signs.
    name: Vec<u8>,
    key_identifier: Option<Vec<u8>>,
    not_after: Timestamp,
    key: std::sync::Arc<dyn SigningKey>,
    scheme: SignatureScheme,
    signature_algorithm: Vec<u8>,
}

const SCHEMES: &[(SignatureScheme, &[u64], bool)] = &[
    // The flag: parameters are an explicit NULL.
    (
        SignatureScheme::RSA_PKCS1_SHA256,
        &[1, 2, 840, 113549, 1, 1, 11],
        true,
    ),
    (
        SignatureScheme::ECDSA_NISTP256_SHA256,
        &[1, 2, 840, 10045, 4, 3, 2],
        false,
    ),
    (
        SignatureScheme::ECDSA_NISTP384_SHA384,
        &[1, 2, 840, 10045, 4, 3, 3],
        false,
    ),
    (SignatureScheme::ED25519, &[1, 3, 101, 112], false),
];

impl Authority {
    /// Reads a CA and checks that certificate and key belong together.
    pub(super) fn load(files: &CaFiles) -> Result<Self, AuthorityError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| AuthorityError::Read {
                path: path.clone(),
                source,
            })
        };
        let (cert_pem, key_pem) = (read(&files.cert_file)?, read(&files.key_file)?);
        let chain = tls::certificates(&files.cert_file.display().to_string(), &cert_pem)?;
        let [certificate] = chain.as_slice() else {
            return Err(AuthorityError::Several(files.cert_file.clone()));
        };
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| {
            AuthorityError::Parse {
                path: files.cert_file.clone(),
                message: e.to_string(),
            }
        })?;
        let key = tls::private_key(&files.key_file.display().to_string(), &key_pem)?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
        if key
            .public_key()
            .is_some_and(|public| *public != *parsed.public_key().raw)
        {
            return Err(AuthorityError::Mismatch(files.cert_file.clone()));
        }
        let schemes: Vec<SignatureScheme> = SCHEMES.iter().map(|(scheme, _, _)| *scheme).collect();
        let scheme = key
            .choose_scheme(&schemes)
            .ok_or(AuthorityError::Algorithm)?
            .scheme();
        let (_, id, null) = SCHEMES
            .iter()
            .find(|(known, _, _)| *known == scheme)
            .ok_or(AuthorityError::Algorithm)?;
        let mut algorithm = vec![der::oid(id)];
        if *null {
            algorithm.push(vec![0x05, 0x00]);
        }
        let key_identifier = parsed
            .extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        Ok(Self {
            name: parsed.subject().as_raw().to_vec(),
            key_identifier,
            not_after: Timestamp::from_second(parsed.validity().not_after.timestamp())
                .unwrap_or(Timestamp::MAX),
            key,
            scheme,
            signature_algorithm: der::sequence(&algorithm),
        })
    }

    /// One that is in no file, with a key that everybody knows.
    #[cfg(any(test, fuzzing))]
    pub(super) fn known() -> Self {
        const ED25519: &[u8] = &[
            0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
        ];
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from([ED25519, &[7; 32]].concat());
        Self {
            name: component_base::subject::Subject::new("known", &[]).to_der(),
            key_identifier: Some(vec![1; 20]),
            not_after: Timestamp::MAX,
            key: rustls::crypto::ring::sign::any_supported_type(&key.into())
                .expect("the key is whole"),
            scheme: SignatureScheme::ED25519,
            signature_algorithm: der::sequence(&[der::oid(&[1, 3, 101, 112])]),
        }
    }

    /// A certificate (PEM) for a request. Name, key and alternative names are written from what was parsed and permitted.
    pub(super) fn sign(
        &self,
        permitted: Permitted<'_>,
        lifetime: Duration,
        now: Timestamp,
        serial: [u8; 16],
    ) -> Result<String, AuthorityError> {
        let (request, usages) = (permitted.request(), permitted.usages());
        let (not_before, not_after) = self.validity(lifetime, now)?;
        let tbs = der::sequence(&[
            der::tlv(0xa0, &der::integer(&[2])),
            der::integer(&serial),
            self.signature_algorithm.clone(),
            self.name.clone(),
            der::sequence(&[der::time(not_before), der::time(not_after)]),
            request.subject.to_der(),
            request.public_key_info.clone(),
            der::tlv(0xa3, &der::sequence(&self.extensions(request, usages)?)),
        ]);
        let signer = self
            .key
            .choose_scheme(&[self.scheme])
            .ok_or(AuthorityError::Algorithm)?;
        let signature = signer.sign(&tbs)?;
        let certificate = der::sequence(&[
            tbs,
            self.signature_algorithm.clone(),
            der::bit_string(&signature),
        ]);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            pem += &String::from_utf8_lossy(line);
            pem.push('\n');
        }
        Ok(pem + "-----END CERTIFICATE-----\n")
    }

    fn validity(
        &self,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<(Timestamp, Timestamp), AuthorityError> {
        let seconds = |d: Duration| {
            jiff::SignedDuration::from_secs(i64::try_from(d.as_secs()).unwrap_or(i64::MAX / 4))
        };
        let not_before = now - seconds(BACKDATE);
        let end = if lifetime < SHORT {
            now + seconds(lifetime)
        } else {
            now + seconds(lifetime) - seconds(BACKDATE)
        };
        if now >= self.not_after {
            return Err(AuthorityError::Expired(self.not_after));
        }
        Ok((not_before, end.min(self.not_after)))
    }

    fn extensions(
        &self,
        request: &Request,
        usages: &[String],
    ) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let (key_usages, extended) = key_usages(usages)?;
        let mut extensions = Vec::new();
        if !key_usages.is_empty() {
            extensions.push(der::extension(
                &[2, 5, 29, 15],
                true,
                &der::named_bits(&key_usages),
            ));
        }
        if !extended.is_empty() {
            let ids: Vec<Vec<u8>> = extended.iter().map(|id| der::oid(id)).collect();
            extensions.push(der::extension(&[2, 5, 29, 37], false, &der::sequence(&ids)));
        }
        // Basic constraints: not a CA.
        extensions.push(der::extension(&[2, 5, 29, 19], true, &der::sequence(&[])));
        if let Some(id) = &self.key_identifier {
            extensions.push(der::extension(
                &[2, 5, 29, 35],
                false,
                &der::sequence(&[der::tlv(0x80, id)]),
            ));
        }
        let mut names = Vec::new();
        names.extend(
            request
                .dns_names
                .iter()
                .map(|n| der::tlv(0x82, n.as_bytes())),
        );
        names.extend(request.emails.iter().map(|n| der::tlv(0x81, n.as_bytes())));
        names.extend(request.ip_addresses.iter().map(|ip| match ip {
            std::net::IpAddr::V4(ip) => der::tlv(0x87, &ip.octets()),
            std::net::IpAddr::V6(ip) => der::tlv(0x87, &ip.octets()),
        }));
        names.extend(request.uris.iter().map(|n| der::tlv(0x86, n.as_bytes())));
        if !names.is_empty() {
            // RFC 5280: critical when the subject is empty.
            let critical = request.subject.is_empty();
            extensions.push(der::extension(
                &[2, 5, 29, 17],
                critical,
                &der::sequence(&names),
            ));
        }
        Ok(extensions)
    }
}

/// The lifetime a request gets: what it asks for, within bounds.
pub(super) fn duration(expiration_seconds: Option<i32>, max: Duration) -> Duration {
    let Some(seconds) = expiration_seconds else {
        return max;
    };
    let asked = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if asked > max {
        max
    } else {
        asked.max(MIN_DURATION)
    }
}

/// Bits of the key usage extension, and identifiers of the extended one.
fn key_usages(usages: &[String]) -> Result<(Vec<usize>, Vec<&'static [u64]>), AuthorityError> {
    let (mut bits, mut extended, mut unknown) =
        (Vec::new(), Vec::<&'static [u64]>::new(), Vec::new());
    let mut sorted: Vec<&String> = usages.iter().collect();
    sorted.sort();
    for usage in sorted {
        let bit = match usage.as_str() {
            "signing" | "digital signature" => Some(0),
            "content commitment" => Some(1),
            "key encipherment" => Some(2),
            "data encipherment" => Some(3),
            "key agreement" => Some(4),
            "cert sign" => Some(5),
            "crl sign" => Some(6),
            "encipher only" => Some(7),
            "decipher only" => Some(8),
            _ => None,
        };
        if let Some(bit) = bit {
            bits.push(bit);
            continue;
        }
        let id: &'static [u64] = match usage.as_str() {
            "any" => &[2, 5, 29, 37, 0],
            "server auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 1],
            "client auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 2],
            "code signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 3],
            "email protection" | "s/mime" => &[1, 3, 6, 1, 5, 5, 7, 3, 4],
            "ipsec end system" => &[1, 3, 6, 1, 5, 5, 7, 3, 5],
            "ipsec tunnel" => &[1, 3, 6, 1, 5, 5, 7, 3, 6],
            "ipsec user" => &[1, 3, 6, 1, 5, 5, 7, 3, 7],
            "timestamping" => &[1, 3, 6, 1, 5, 5, 7, 3, 8],
            "ocsp signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 9],
            "microsoft sgc" => &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3],
            "netscape sgc" => &[2, 16, 840, 1, 113730, 4, 1],
            other => {
                unknown.push(other.to_string());
                continue;
            }
        };
        if !extended.contains(&id) {
            extended.push(id);
        }
    }
    if unknown.is_empty() {
        Ok((bits, extended))
    } else {
        Err(AuthorityError::Usages(unknown.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        let year = Duration::from_secs(365 * 24 * 3600);
        assert_eq!(duration(None, year), year);
        assert_eq!(duration(Some(60), year), MIN_DURATION);
        assert_eq!(duration(Some(3600), year), Duration::from_secs(3600));
        assert_eq!(duration(Some(i32::MAX), year), year);
    }
}
