//! What must hold whatever a request for a certificate says: for the fuzz target in `fuzz/`, and for the cases it found.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use component_base::der;
use component_base::subject::Subject;
use jiff::Timestamp;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::authority::Authority;
use super::request::{Request, Signed, validate};
use super::{
    KUBE_APISERVER_CLIENT, KUBE_APISERVER_CLIENT_KUBELET, KUBELET_SERVING, LEGACY_UNKNOWN,
};

/// A request as PEM or as DER, where its signature is taken for right: a certificate made of it names, to another parser,
/// exactly what was understood, and what its signer allows; it is no CA's.
///
/// # Panics
/// When the promise is broken.
pub fn certificate_request(data: &[u8]) {
    let _ = Request::parse(data).map_err(|error| error.to_string());
    let Ok(request) = Signed::read(data).and_then(Signed::understand) else {
        return;
    };
    let usages =
        |names: &[&str]| -> Vec<String> { names.iter().map(ToString::to_string).collect() };
    let client = usages(&["digital signature", "client auth"]);
    let serving = usages(&["digital signature", "server auth"]);
    for signer in [
        KUBELET_SERVING,
        KUBE_APISERVER_CLIENT_KUBELET,
        KUBE_APISERVER_CLIENT,
        LEGACY_UNKNOWN,
    ] {
        for usages in [&client, &serving] {
            let Ok(permitted) = validate(signer, &request, usages) else {
                continue;
            };
            let now = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(24 * 365 * 50);
            let pem = Authority::known()
                .sign(permitted, Duration::from_secs(3600), now, [1; 16])
                .expect("what is permitted is signed");
            check(signer, &request, &pem);
        }
    }
}

fn check(signer: &str, request: &Request, pem: &str) {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD
        .decode(body)
        .expect("it is PEM");
    // The key's bits are the client's, and only its own signature speaks for them.
    let Ok((rest, certificate)) = x509_parser::parse_x509_certificate(&der) else {
        assert!(
            SubjectPublicKeyInfo::from_der(&request.public_key_info).is_err(),
            "the certificate cannot be read, and not for its key"
        );
        return;
    };
    assert!(rest.is_empty());
    let subject = certificate.subject();
    let texts = |attributes: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| -> Vec<String> {
        attributes
            .iter()
            .map(|a| String::from_utf8_lossy(a.attr_value().data).into_owned())
            .collect()
    };
    let users = texts(subject.iter_common_name().collect());
    let groups = texts(subject.iter_organization().collect());
    assert!(users.len() <= 1);
    assert_eq!(
        users.first().map_or("", String::as_str),
        request.subject.common_name()
    );
    assert_eq!(groups, request.subject.organizations());
    assert!(subject.iter_rdn().all(|set| set.iter().count() == 1));
    if matches!(signer, KUBELET_SERVING | KUBE_APISERVER_CLIENT_KUBELET) {
        assert_eq!(groups, ["system:nodes"]);
        assert!(users[0].starts_with("system:node:"));
    }
    let mut ids = BTreeSet::new();
    let mut names = 0;
    for extension in certificate.extensions() {
        assert!(
            ids.insert(extension.oid.to_id_string()),
            "an extension twice"
        );
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => assert!(!constraints.ca),
            ParsedExtension::SubjectAlternativeName(list) => {
                names = list.general_names.len();
                for name in &list.general_names {
                    assert!(allowed(request, name), "{name:?} was not understood");
                }
            }
            ParsedExtension::KeyUsage(usage) => {
                assert!(!usage.key_cert_sign() && !usage.crl_sign());
            }
            _ => {}
        }
    }
    let understood = request.dns_names.len()
        + request.emails.len()
        + request.ip_addresses.len()
        + request.uris.len();
    assert_eq!(names, understood);
    if signer == KUBE_APISERVER_CLIENT_KUBELET {
        assert_eq!(names, 0);
    }
}

fn allowed(request: &Request, name: &GeneralName<'_>) -> bool {
    let has = |list: &[String], text: &str| list.iter().any(|known| known == text);
    match name {
        GeneralName::DNSName(text) => has(&request.dns_names, text),
        GeneralName::RFC822Name(text) => has(&request.emails, text),
        GeneralName::URI(text) => has(&request.uris, text),
        GeneralName::IPAddress(bytes) => request.ip_addresses.iter().any(|ip| match ip {
            std::net::IpAddr::V4(ip) => ip.octets() == *bytes,
            std::net::IpAddr::V6(ip) => ip.octets() == *bytes,
        }),
        _ => false,
    }
}

/// Requests to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let san = |names: &[Vec<u8>]| {
        let extension = der::extension(&[2, 5, 29, 17], false, &der::sequence(names));
        der::sequence(&[
            der::oid(&[1, 2, 840, 113549, 1, 9, 14]),
            der::tlv(der::SET, &der::sequence(&[extension])),
        ])
    };
    let request = |subject: &Subject, attributes: &[u8]| {
        let key = der::sequence(&[
            der::sequence(&[der::oid(&[1, 3, 101, 112])]),
            der::bit_string(&[9; 32]),
        ]);
        der::sequence(&[
            der::sequence(&[
                der::integer(&[0]),
                subject.to_der(),
                key,
                der::tlv(0xa0, attributes),
            ]),
            der::sequence(&[der::oid(&[1, 3, 101, 112])]),
            der::bit_string(&[9; 64]),
        ])
    };
    let node = Subject::new("system:node:a", &["system:nodes"]);
    let names = [
        der::tlv(0x82, b"a.example"),
        der::tlv(0x81, b"a@b"),
        der::tlv(0x86, b"spiffe://a"),
        der::tlv(0x87, &[10, 0, 0, 1]),
        der::tlv(0x87, &[1; 16]),
    ];
    vec![
        request(&node, &[]),
        request(&node, &san(&names)),
        request(&node, &san(&[names[0].clone(), names[3].clone()])),
        request(&Subject::new("ü@x", &["b", "c"]), &[]),
        request(&Subject::default(), &san(&names[..1])),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::seeds() {
            super::certificate_request(&case);
            super::certificate_request(&case[..case.len() - 1]);
        }
    }
}
