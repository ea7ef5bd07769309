//! The fingerprint of a node's pods: the same for the same set of names, whatever the order. Agents write it into their reports, so that a report can be told to be
//! about the pods that are known here. A hash (XXH64), not a proof.
//!
//! Upstream: github.com/k8stopologyawareschedwg/podfingerprint, `pfp0v001`; XXH64 by its specification.

/// What every fingerprint of this version begins with.
const PREFIX: &str = "pfp0v001";

const PRIMES: [u64; 5] = [
    0x9e37_79b1_85eb_ca87,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];

/// The fingerprint of pods by namespace and name.
pub fn sign<'a>(pods: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let one = |(namespace, name): (&str, &str)| {
        let seed = xxh64(namespace.as_bytes(), 0);
        xxh64(name.as_bytes(), seed)
    };
    let mut hashes: Vec<u64> = pods.map(one).collect();
    hashes.sort_unstable();
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
    format!("{PREFIX}{:016x}", xxh64(&bytes, 0))
}

fn round(accumulator: u64, lane: u64) -> u64 {
    let mixed = accumulator.wrapping_add(lane.wrapping_mul(PRIMES[1]));
    mixed.rotate_left(31).wrapping_mul(PRIMES[0])
}

fn read64(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}

fn xxh64(input: &[u8], seed: u64) -> u64 {
    let mut rest = input;
    let mut hash = if input.len() >= 32 {
        let mut lanes = [
            seed.wrapping_add(PRIMES[0]).wrapping_add(PRIMES[1]),
            seed.wrapping_add(PRIMES[1]),
            seed,
            seed.wrapping_sub(PRIMES[0]),
        ];
        while rest.len() >= 32 {
            for (i, lane) in lanes.iter_mut().enumerate() {
                *lane = round(*lane, read64(&rest[i * 8..]));
            }
            rest = &rest[32..];
        }
        let rotations = lanes.iter().zip([1, 7, 12, 18]);
        let mut hash = rotations.fold(0u64, |sum, (lane, by)| {
            sum.wrapping_add(lane.rotate_left(by))
        });
        for lane in lanes {
            hash ^= round(0, lane);
            hash = hash.wrapping_mul(PRIMES[0]).wrapping_add(PRIMES[3]);
        }
        hash
    } else {
        seed.wrapping_add(PRIMES[4])
    };
    hash = hash.wrapping_add(input.len() as u64);
    while rest.len() >= 8 {
        hash ^= round(0, read64(rest));
        hash = hash.rotate_left(27).wrapping_mul(PRIMES[0]);
        hash = hash.wrapping_add(PRIMES[3]);
        rest = &rest[8..];
    }
    if rest.len() >= 4 {
        let word = u64::from(u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]));
        hash ^= word.wrapping_mul(PRIMES[0]);
        hash = hash.rotate_left(23).wrapping_mul(PRIMES[1]);
        hash = hash.wrapping_add(PRIMES[2]);
        rest = &rest[4..];
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(PRIMES[4]);
        hash = hash.rotate_left(11).wrapping_mul(PRIMES[0]);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(PRIMES[1]);
    hash = (hash ^ (hash >> 29)).wrapping_mul(PRIMES[2]);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_xxh64() {
        // The specification's and its implementations' own examples.
        assert_eq!(xxh64(b"", 0), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"a", 0), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(xxh64(b"abc", 0), 0x44bc_2cf5_ad77_0999);
        let long = b"Nobody inspects the spammish repetition";
        assert_eq!(xxh64(long, 0), 0xfbce_a83c_8a37_8bf1);
    }

    #[test]
    fn the_order_does_not_matter_and_the_names_do() {
        let of = |pods: &[(&'static str, &'static str)]| sign(pods.iter().copied());
        let two = of(&[("a", "x"), ("b", "y")]);
        assert!(two.starts_with("pfp0v001") && two.len() == 24, "{two}");
        assert_eq!(two, of(&[("b", "y"), ("a", "x")]));
        assert_ne!(two, of(&[("a", "y"), ("b", "x")]));
        assert_ne!(two, of(&[("a", "x")]));
        // No pods: the hash of nothing.
        assert_eq!(of(&[]), "pfp0v001ef46db3751d8e999");
    }
}
