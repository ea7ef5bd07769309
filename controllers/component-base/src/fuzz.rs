//! What must hold whatever a stranger's certificate, a flag or a duration says: for the fuzz targets in `fuzz/`, and for
//! the cases they found. Each function panics when its promise is broken.

use crate::der::{Reader, tlv};
use crate::duration;
use crate::subject::Subject;
use crate::tls;

/// DER and the names in certificates: an element that is read is written the same; a name that is read is written so that
/// it is read as the same identity, in plainer form.
pub fn certificates(data: &[u8]) {
    elements(data, 0);
    if let Ok(subject) = Subject::parse(data) {
        let again = Subject::parse(&subject.to_der()).expect("what is written is read");
        assert_eq!(again.common_name(), subject.common_name());
        assert_eq!(again.organizations(), subject.organizations());
        assert_eq!(again.uid(), subject.uid());
        assert!(!again.is_multi_valued() && again.unknown().is_empty());
        assert!(subject.organizations().iter().all(|o| !o.is_empty()));
        let control = |text: &str| text.chars().any(char::is_control);
        assert!(
            !control(subject.common_name()) && !subject.organizations().iter().any(|o| control(o))
        );
        assert_eq!(again.to_der(), subject.to_der());
    }
    let _ = tls::certificates("f", data).map_err(|error| error.to_string());
    let _ = tls::private_key("f", data).map_err(|error| error.to_string());
}

fn elements(data: &[u8], depth: usize) {
    let mut reader = Reader::new(data);
    while let Ok(element) = reader.element() {
        assert_eq!(tlv(element.tag, element.content), element.raw);
        if element.tag & 0x20 != 0 && depth < 16 {
            elements(element.content, depth + 1);
        }
    }
}

/// Durations as Go writes them: what is read and written again is read the same.
pub fn durations(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(duration) = duration::parse(text) {
        let written = duration::format(duration);
        assert_eq!(duration::parse(&written).ok(), Some(duration), "{written}");
    }
}

/// Names to begin with.
pub fn certificate_seeds() -> Vec<Vec<u8>> {
    vec![
        Subject::new("system:node:ä", &["system:nodes", "x"]).to_der(),
        Subject::new("a", &[]).to_der(),
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".to_vec(),
        b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n".to_vec(),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::certificate_seeds() {
            super::certificates(&case);
        }
        for case in ["1h2m3.5s", "0", "-1s", "1e9s", "9223372036854775807ns"] {
            super::durations(case.as_bytes());
        }
    }
}
