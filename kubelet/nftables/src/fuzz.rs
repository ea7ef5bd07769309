//! What must hold whatever the kernel or `nft` answers: for the fuzz targets in `fuzz/`, and for the cases they found.
//!
//! Each function panics when its promise is broken.

use crate::{Family, diff, listing};

/// Answers of netlink's conntrack.
pub fn conntrack(data: &[u8]) {
    crate::conntrack::fuzz(data);
}

/// What `nft --json list` prints: a table that is read differs in nothing from itself but what was marked as never wanted.
pub fn listing(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for family in [Family::Ip, Family::Ip6] {
        let _ = listing::table_names(family, text);
        if let Ok(table) = listing::table(family, "kube-proxy", text) {
            assert_eq!(
                table,
                listing::table(family, "kube-proxy", text).expect("it was read before")
            );
            let again = diff(Some(&table), &table);
            let _ = format!("{again:?}");
        }
    }
}

/// Answers to begin with: an entry, and an end.
pub fn conntrack_seeds() -> Vec<Vec<u8>> {
    let attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(value.len() + 4).expect("attributes are short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let tuple = |kind: u16, source: &[u8], destination: &[u8], version: u16| {
        let addresses = [
            attribute(version, source),
            attribute(version + 1, destination),
        ]
        .concat();
        let ports = [
            attribute(1, &[17]),
            attribute(2, &[0, 53]),
            attribute(3, &[0, 80]),
        ]
        .concat();
        let both = [
            attribute(1 | 0x8000, &addresses),
            attribute(2 | 0x8000, &ports),
        ]
        .concat();
        attribute(kind | 0x8000, &both)
    };
    let message = |kind: u16, body: &[u8]| {
        let length = u32::try_from(16 + body.len()).expect("messages are short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend_from_slice(body);
        bytes
    };
    let entry = |a: &[u8], b: &[u8], version| {
        let mut body = vec![2, 0, 0, 0];
        body.extend(tuple(1, a, b, version));
        body.extend(tuple(2, b, a, version));
        message(0x100, &body)
    };
    vec![
        [
            entry(&[10, 0, 0, 1], &[10, 0, 0, 2], 1),
            message(3, &[0; 4]),
        ]
        .concat(),
        entry(&[1; 16], &[2; 16], 3),
        message(2, &(-2i32).to_ne_bytes()),
    ]
}

/// Listings to begin with.
pub fn listing_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "ip", "name": "kube-proxy"}}]}"#,
        r#"{"nftables": [{"chain": {"family": "ip", "name": "c", "type": "nat", "hook": "prerouting", "prio": -100}}, {"rule": {"chain": "c", "comment": "ab"}}]}"#,
        r#"{"nftables": [{"set": {"name": "s", "type": "ipv4_addr", "elem": ["10.0.0.1", {"prefix": {"addr": "10.0.0.0", "len": 8}}]}}]}"#,
        r#"{"nftables": [{"map": {"name": "m", "type": ["ipv4_addr", "inet_proto", "inet_service"], "map": "verdict", "elem": [[{"concat": ["10.0.0.1", "tcp", 80]}, {"goto": {"target": "c"}}]]}}]}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::conntrack_seeds() {
            super::conntrack(&case);
        }
        for case in super::listing_seeds() {
            super::listing(&case);
        }
    }
}
