//! Names that are derived: stable hashes of a template and generated suffixes.
//!
//! Upstream: k8s.io/apimachinery/pkg/util/rand, k8s.io/apiserver/pkg/storage/names and pkg/controller ComputeHash, v1.36.

/// The letters generated names are made of: no vowels, no look-alikes (0, 1, 3), so that no word arises.
pub const ALPHANUMS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name has at most 63 characters; a generated one keeps 5 of them for its suffix.
const MAX_GENERATED_NAME_LENGTH: usize = 63 - RANDOM_LENGTH;
const RANDOM_LENGTH: usize = 5;

/// FNV-1a, 32 bit.
pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// FNV-1, 32 bit.
fn fnv32<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| {
        hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte)
    })
}

/// FNV-1a, 64 bit.
pub fn fnv64a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Maps each character of `text` into [`ALPHANUMS`], so that a number makes a harmless name.
pub fn safe_encode_string(text: &str) -> String {
    text.bytes()
        .map(|byte| ALPHANUMS[byte as usize % ALPHANUMS.len()] as char)
        .collect()
}

/// The `pod-template-hash` of a template, given as its canonical JSON (k8s-openapi writes maps sorted), and the owner's
/// collision count.
// DIFFERS: upstream hashes a dump of Go memory; no other language can reproduce it. Ours is as stable and as short; a
// Deployment finds its ReplicaSets by comparing templates, so both understand each other's.
pub fn compute_hash(template_json: &[u8], collision_count: Option<i32>) -> String {
    let mut bytes = template_json.to_vec();
    if let Some(count) = collision_count {
        bytes.extend_from_slice(&(count as u32 as u64).to_le_bytes());
    }
    safe_encode_string(&fnv32a(&bytes).to_string())
}

/// The hash of a StatefulSet's ControllerRevision, given the bytes of its data as they are stored, and the owner's collision count.
///
/// Upstream: `HashControllerRevision` of pkg/controller/history.
pub fn revision_hash(data: &[u8], collision_count: i32) -> String {
    let count = collision_count.to_string();
    safe_encode_string(&fnv32(data.iter().chain(count.as_bytes())).to_string())
}

/// `base` with a suffix of five letters drawn from `random`, cut to fit a name (`generateName`).
pub fn generate_name(base: &str, mut random: u64) -> String {
    let mut end = base.len().min(MAX_GENERATED_NAME_LENGTH);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_string();
    for _ in 0..RANDOM_LENGTH {
        name.push(ALPHANUMS[(random % ALPHANUMS.len() as u64) as usize] as char);
        random /= ALPHANUMS.len() as u64;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes() {
        assert_eq!(fnv32a(b""), 0x811c_9dc5);
        assert_eq!(fnv32a(b"a"), 0xe40c_292c);
        assert_eq!(fnv64a(b"a"), 0xaf63_dc4c_8601_ec8c);
        let plain = compute_hash(b"{}", None);
        assert_eq!(plain, compute_hash(b"{}", None));
        assert_ne!(plain, compute_hash(b"{}", Some(1)));
        assert!(plain.bytes().all(|b| ALPHANUMS.contains(&b)) && plain.len() <= 10);
    }

    /// What kube-controller-manager 1.37.2 named the first revision of this StatefulSet.
    #[test]
    fn revisions_are_named_as_upstreams() {
        let data = r#"{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"s"}},"spec":{"containers":[{"command":["sleep","36000"],"image":"registry.k8s.io/e2e-test-images/busybox:1.37.0-2","imagePullPolicy":"IfNotPresent","name":"c","resources":{},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"dnsPolicy":"ClusterFirst","restartPolicy":"Always","schedulerName":"default-scheduler","securityContext":{},"terminationGracePeriodSeconds":30}}}}"#;
        assert_eq!(revision_hash(data.as_bytes(), 0), "759787b5b9");
        assert_ne!(revision_hash(data.as_bytes(), 1), "759787b5b9");
    }

    #[test]
    fn generated_names() {
        let name = generate_name("web-", 123_456_789);
        assert!(name.starts_with("web-") && name.len() == 9);
        assert_ne!(name, generate_name("web-", 987_654_321));
        assert_eq!(generate_name(&"x".repeat(100), 7).len(), 63);
    }
}
