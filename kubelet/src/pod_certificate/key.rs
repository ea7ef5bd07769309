//! Keys of pods, and the stub of a request that shows who holds one.
//!
//! Upstream: `generateKeyAndProof` of pkg/kubelet/podcertificate, v1.37.

use p521::ecdsa::signature::Signer;
use p521::ecdsa::{DerSignature, SigningKey};
use p521::elliptic_curve::Generate;
use pem::{EncodeConfig, Pem};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, SignatureAlgorithm,
};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use rsa::sha2::Sha256;
use yasna::models::ObjectIdentifier;
use yasna::{Tag, construct_der};

/// Why there is no key. A retry does not help.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error(
        "unknown key type {0:?}; supported: RSA3072, RSA4096, ECDSAP256, ECDSAP384, ECDSAP521, ED25519"
    )]
    Unknown(String),
    #[error("while generating {key_type} key: {why}")]
    Generate { key_type: String, why: String },
}

/// A key in PKCS#8 PEM, and an empty PKCS#10 request signed by it, in DER. Takes seconds for RSA.
///
/// # Errors
/// The API has no such key type, or there is no such key.
pub(super) fn generate(key_type: &str) -> Result<(Vec<u8>, Vec<u8>), KeyError> {
    let made = match key_type {
        "RSA3072" => of_rsa(3072),
        "RSA4096" => of_rsa(4096),
        "ECDSAP256" => of_ring(&PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => of_ring(&PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => of_p521(),
        "ED25519" => of_ed25519(),
        other => return Err(KeyError::Unknown(other.to_owned())),
    };
    made.map_err(|error| KeyError::Generate {
        key_type: key_type.to_owned(),
        why: error.to_string(),
    })
}

type Made = Result<(Vec<u8>, Vec<u8>), Box<dyn std::error::Error>>;

fn of_ring(algorithm: &'static SignatureAlgorithm) -> Made {
    let key = KeyPair::generate_for(algorithm)?;
    let request = request(&key)?;
    Ok((key.serialize_pem().into_bytes(), request))
}

/// ring writes PKCS#8 of version 2 (RFC 5958), which OpenSSL 3.0 does not read: here it is of version 1 (RFC 8410 7), as upstream's.
fn of_ed25519() -> Made {
    const ALGORITHM: &[u64] = &[1, 3, 101, 112];
    let seed: [u8; 32] = rand::random();
    let der = construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_u8(0);
            writer.next().write_sequence(|writer| {
                writer
                    .next()
                    .write_oid(&ObjectIdentifier::from_slice(ALGORITHM));
            });
            let private = construct_der(|writer| writer.write_bytes(&seed));
            writer.next().write_bytes(&private);
        });
    });
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), &PKCS_ED25519)?;
    let request = request(&key)?;
    let pem = pem::encode_config(&Pem::new("PRIVATE KEY", der), lines());
    Ok((pem.into_bytes(), request))
}

fn lines() -> EncodeConfig {
    EncodeConfig::new().set_line_ending(pem::LineEnding::LF)
}

fn request(key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key)?;
    Ok(request.der().to_vec())
}

fn of_rsa(bits: usize) -> Made {
    // sha256WithRSAEncryption, RFC 8017 A.2.4: its parameters are NULL.
    const ALGORITHM: &[u64] = &[1, 2, 840, 113_549, 1, 1, 11];
    let key = rsa::PrivateKey::new(&mut rand::rng(), bits)?;
    let public = key.to_public_key().to_public_key_der()?;
    let info = request_info(public.as_bytes());
    let signature = key.pkcs1v15_sign::<Sha256>(&info)?;
    let pem = key.to_pkcs8_pem(LineEnding::LF)?;
    let request = signed(&info, ALGORITHM, true, &signature);
    Ok((pem.as_bytes().to_vec(), request))
}

fn of_p521() -> Made {
    // ecdsa-with-SHA512, RFC 5758 3.2: it has no parameters.
    const ALGORITHM: &[u64] = &[1, 2, 840, 10_045, 4, 3, 4];
    let key = SigningKey::generate();
    let public = key.verifying_key().to_public_key_der()?;
    let info = request_info(public.as_bytes());
    let signature: DerSignature = key.try_sign(&info)?;
    let pem = key.to_pkcs8_pem(LineEnding::LF)?;
    let request = signed(&info, ALGORITHM, false, signature.as_bytes());
    Ok((pem.as_bytes().to_vec(), request))
}

/// A CertificationRequestInfo (RFC 2986 4.1) of an empty name, without attributes.
fn request_info(public_key: &[u8]) -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_u8(0);
            writer.next().write_sequence(|_| {});
            writer.next().write_der(public_key);
            let attributes = writer.next();
            attributes.write_tagged_implicit(Tag::context(0), |writer| writer.write_set(|_| {}));
        });
    })
}

fn signed(info: &[u8], algorithm: &[u64], null: bool, signature: &[u8]) -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(info);
            writer.next().write_sequence(|writer| {
                writer
                    .next()
                    .write_oid(&ObjectIdentifier::from_slice(algorithm));
                if null {
                    writer.next().write_null();
                }
            });
            writer
                .next()
                .write_bitvec_bytes(signature, signature.len() * 8);
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Command;

    /// Asks another implementation what was made: (words of the key, words of the request).
    fn read(key: &[u8], request: &[u8]) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, bytes: &[u8], args: &[&str]| {
            let path = dir.path().join(name);
            std::fs::File::create(&path)
                .unwrap()
                .write_all(bytes)
                .unwrap();
            let out = Command::new("openssl")
                .args(args)
                .arg("-in")
                .arg(&path)
                .output()
                .unwrap();
            let said = [out.stdout, out.stderr].concat();
            String::from_utf8_lossy(&said).into_owned()
        };
        let words = of("key", key, &["pkey", "-noout", "-text"]);
        let verify = ["req", "-inform", "DER", "-noout", "-verify", "-text"];
        (words, of("request", request, &verify))
    }

    #[test]
    fn every_kind_is_read_by_another_implementation() {
        for (key_type, of_key, of_request) in [
            (
                "RSA3072",
                "Private-Key: (3072 bit",
                "sha256WithRSAEncryption",
            ),
            ("ECDSAP256", "ASN1 OID: prime256v1", "ecdsa-with-SHA256"),
            ("ECDSAP384", "ASN1 OID: secp384r1", "ecdsa-with-SHA384"),
            ("ECDSAP521", "ASN1 OID: secp521r1", "ecdsa-with-SHA512"),
            (
                "ED25519",
                "ED25519 Private-Key",
                "Signature Algorithm: ED25519",
            ),
        ] {
            let (key, request) = generate(key_type).unwrap();
            let (key, request) = read(&key, &request);
            assert!(key.contains(of_key), "{key_type}: {key}");
            assert!(request.contains(of_request), "{key_type}: {request}");
            assert!(request.contains("verify OK"), "{key_type}: {request}");
            let subject = request.lines().find(|line| line.contains("Subject:"));
            assert_eq!(subject.map(str::trim), Some("Subject:"), "{key_type}");
        }
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        let error = generate("RSA2048").unwrap_err().to_string();
        assert!(error.starts_with("unknown key type \"RSA2048\""), "{error}");
    }
}
