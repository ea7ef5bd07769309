//! The decision: the signatures the ConfigMap should have. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::ConfigMap;
use sha2::{Digest as _, Sha256};

/// What is signed.
const KUBECONFIG_KEY: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

/// The ConfigMap with right signatures for these tokens (id to secret); `None` when it has them, or has nothing to sign.
pub(super) fn sync(observed: &ConfigMap, tokens: &BTreeMap<String, String>) -> Option<ConfigMap> {
    let data = observed.data.as_ref()?;
    let content = data.get(KUBECONFIG_KEY)?;
    let mut wanted: BTreeMap<String, String> = data
        .iter()
        .filter(|(key, _)| !key.starts_with(SIGNATURE_PREFIX))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    for (id, secret) in tokens {
        wanted.insert(
            format!("{SIGNATURE_PREFIX}{id}"),
            detached_signature(content, id, secret),
        );
    }
    (wanted != *data).then(|| ConfigMap {
        data: Some(wanted),
        ..observed.clone()
    })
}

/// A JWS (HS256) without its content: RFC 7515, appendix F.
fn detached_signature(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    format!(
        "{header}..{}",
        URL_SAFE_NO_PAD.encode(hmac_sha256(secret.as_bytes(), signed.as_bytes()))
    )
}

/// RFC 2104 over SHA-256.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new()
        .chain_update(block.map(|b| b ^ 0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(block.map(|b| b ^ 0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_of_rfc_4231() {
        let hex: String = hmac_sha256(b"Jefe", b"what do ya want for nothing?")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(
            hex,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn signature_as_upstream_makes_it() {
        // The vector of k8s.io/cluster-bootstrap's own test.
        let signature = detached_signature(
            "Hello from the other side. I must have called a thousand times.",
            "joshua",
            "my voice is my passcode",
        );
        assert_eq!(
            signature,
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
        );
    }

    #[test]
    fn signs_and_takes_back() {
        let map = |pairs: &[(&str, &str)]| ConfigMap {
            data: Some(
                pairs
                    .iter()
                    .map(|(k, v)| (k.to_string(), v.to_string()))
                    .collect(),
            ),
            ..ConfigMap::default()
        };
        let tokens = BTreeMap::from([("abcdef".to_string(), "s".to_string())]);
        let signed = sync(
            &map(&[("kubeconfig", "x"), ("jws-kubeconfig-old", "y")]),
            &tokens,
        )
        .unwrap();
        let keys: Vec<&String> = signed.data.as_ref().unwrap().keys().collect();
        assert_eq!(keys, ["jws-kubeconfig-abcdef", "kubeconfig"]);
        assert_eq!(sync(&signed, &tokens), None);
        assert_eq!(sync(&map(&[("other", "x")]), &tokens), None);
    }
}
