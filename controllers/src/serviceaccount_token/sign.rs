//! Signed tokens (JWS, RFC 7515): RS256, ES256 or ES384, by the kind of key. Upstream: pkg/serviceaccount/jwt.go.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::SigningKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The file cannot be read, or holds no private key in PEM.
    #[error("no private key: {0}")]
    Pem(String),
    /// No RSA key and none on the curves P-256 and P-384.
    #[error("unsupported private key: {0}")]
    Key(String),
    /// The key refused.
    #[error("signing: {0}")]
    Sign(String),
}

/// An algorithm of JWS: its name, what rustls calls it, and for ECDSA the bytes of a coordinate.
const ALGORITHMS: &[(&str, SignatureScheme, Option<usize>)] = &[
    ("RS256", SignatureScheme::RSA_PKCS1_SHA256, None),
    ("ES256", SignatureScheme::ECDSA_NISTP256_SHA256, Some(32)),
    ("ES384", SignatureScheme::ECDSA_NISTP384_SHA384, Some(48)),
];

/// Signs claims with one key.
pub struct TokenSigner {
    key: Arc<dyn SigningKey>,
    algorithm: &'static (&'static str, SignatureScheme, Option<usize>),
    key_id: String,
}

impl TokenSigner {
    /// From a PEM file.
    ///
    /// # Errors
    /// When the file holds no key that can sign; a retry does not help.
    pub fn from_file(path: &Path) -> Result<Self, SignError> {
        let pem = std::fs::read(path).map_err(|e| SignError::Pem(e.to_string()))?;
        Self::from_pem(&pem)
    }

    /// From PEM: PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    /// As [`TokenSigner::from_file`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SignError> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|e| SignError::Pem(e.to_string()))?;
        let key = rustls::crypto::ring::sign::any_supported_type(&der)
            .map_err(|e| SignError::Key(e.to_string()))?;
        let can = |scheme: SignatureScheme| key.choose_scheme(&[scheme]).is_some();
        let algorithm = ALGORITHMS
            .iter()
            .find(|(_, scheme, _)| can(*scheme))
            .ok_or_else(|| SignError::Key("expected RSA, P-256 or P-384".to_owned()))?;
        let public = key
            .public_key()
            .ok_or_else(|| SignError::Key("it has no public key".to_owned()))?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(public.as_ref()));
        Ok(Self {
            key,
            algorithm,
            key_id,
        })
    }

    /// The signed token of these claims.
    ///
    /// # Errors
    /// When the key refuses.
    pub fn sign(&self, claims: &Value) -> Result<String, SignError> {
        let (name, scheme, coordinate) = self.algorithm;
        let header = json!({"alg": name, "kid": self.key_id});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(claims));
        let signature = self
            .key
            .choose_scheme(&[*scheme])
            .ok_or_else(|| SignError::Sign("the key cannot".to_owned()))?
            .sign(message.as_bytes())
            .map_err(|e| SignError::Sign(e.to_string()))?;
        let signature = match coordinate {
            None => signature,
            Some(bytes) => fixed(&signature, *bytes)
                .ok_or_else(|| SignError::Sign("malformed signature".to_owned()))?,
        };
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The two numbers of an ECDSA signature in ASN.1 (`SEQUENCE { r INTEGER, s INTEGER }`), each filled up to `bytes` bytes.
fn fixed(der: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let (content, rest) = element(der, 0x30)?;
    let (r, more) = element(content, 0x02)?;
    let (s, end) = element(more, 0x02)?;
    if !rest.is_empty() || !end.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(2 * bytes);
    for number in [r, s] {
        let start = number.iter().position(|b| *b != 0).unwrap_or(number.len());
        let number = &number[start..];
        out.resize(out.len() + bytes.checked_sub(number.len())?, 0);
        out.extend_from_slice(number);
    }
    Some(out)
}

/// The content of the first element, which must have this tag, and what follows it. Lengths under 256 are all there is here.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match der {
        [t, 0x81, length, rest @ ..] if *t == tag => (*length, rest),
        [t, length, rest @ ..] if *t == tag && *length < 0x80 => (*length, rest),
        _ => return None,
    };
    rest.split_at_checked(usize::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::PublicKeyData as _;

    #[test]
    fn es256() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let signer = TokenSigner::from_pem(pair.serialize_pem().as_bytes()).unwrap();
        let claims = json!({"sub": "system:serviceaccount:ns:default"});
        for _ in 0..50 {
            let token = signer.sign(&claims).unwrap();
            let parts: Vec<Vec<u8>> = token
                .split('.')
                .map(|part| URL_SAFE_NO_PAD.decode(part).unwrap())
                .collect();
            let header: Value = serde_json::from_slice(&parts[0]).unwrap();
            assert_eq!(header["alg"], "ES256");
            assert_eq!(header["kid"].as_str().unwrap().len(), 43);
            assert_eq!(serde_json::from_slice::<Value>(&parts[1]).unwrap(), claims);
            assert_eq!(parts[2].len(), 64);
        }
        let public = pair.subject_public_key_info();
        assert_eq!(
            signer.key_id,
            URL_SAFE_NO_PAD.encode(Sha256::digest(&public))
        );
    }

    #[test]
    fn ecdsa_numbers_are_filled_up() {
        let der = [0x30, 7, 0x02, 2, 0, 0x81, 0x02, 1, 5];
        assert_eq!(fixed(&der, 2), Some(vec![0, 0x81, 0, 5]));
        assert_eq!(fixed(&der, 0), None);
        assert_eq!(fixed(&der[..8], 2), None);
    }

    #[test]
    fn no_key() {
        assert!(matches!(
            TokenSigner::from_pem(b"nonsense"),
            Err(SignError::Pem(_))
        ));
    }
}
