//! Keys of pods, and the stub of a request that shows who holds one.

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519,
};

/// Why there is no key. A retry does not help.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error(
        "key type {0:?} is not supported by this kubelet; supported: ECDSAP256, ECDSAP384, ED25519"
    )]
    Unknown(String),
    #[error("while generating {key_type} key: {source}")]
    Generate {
        key_type: String,
        #[source]
        source: rcgen::Error,
    },
}

/// A key in PKCS#8 PEM, and an empty PKCS#10 request signed by it, in DER.
///
/// # Errors
/// The key type is not built: RSA3072, RSA4096 and ECDSAP521 of upstream's are not.
pub(super) fn generate(key_type: &str) -> Result<(Vec<u8>, Vec<u8>), KeyError> {
    let algorithm = match key_type {
        "ECDSAP256" => &PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &PKCS_ECDSA_P384_SHA384,
        "ED25519" => &PKCS_ED25519,
        other => return Err(KeyError::Unknown(other.to_owned())),
    };
    let failed = |source| KeyError::Generate {
        key_type: key_type.to_owned(),
        source,
    };
    let key = KeyPair::generate_for(algorithm).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_pem().into_bytes(), request.der().to_vec()))
}
