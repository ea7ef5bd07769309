//! Requests as a stranger would write them, byte by byte, and what becomes of each: recognized for approval or not, signed or not, and
//! what the signed certificate says.

use std::time::Duration;

use base64::Engine as _;
use component_base::der;
use component_base::subject::{Subject, SubjectError};
use component_base::tls;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PublicKeyData as _, SigningKey as _,
};

use super::approving::tests::recognized;
use super::authority::Authority;
use super::request::{Request, RequestError};
use super::signing::sign;
use super::{
    KUBE_APISERVER_CLIENT, KUBE_APISERVER_CLIENT_KUBELET, KUBELET_SERVING, LEGACY_UNKNOWN,
};
use crate::options::CaFiles;

const CN: &[u64] = &[2, 5, 4, 3];
const O: &[u64] = &[2, 5, 4, 10];
const OU: &[u64] = &[2, 5, 4, 11];
const EMAIL: &[u64] = &[1, 2, 840, 113549, 1, 9, 1];
const USER_ID: &[u64] = &[0, 9, 2342, 19200300, 100, 1, 1];
const KUBERNETES_UID: &[u64] = &[1, 3, 6, 1, 4, 1, 57683, 2];

const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const T61: u8 = 0x14;
const IA5: u8 = 0x16;
const UNIVERSAL: u8 = 0x1c;
const BMP: u8 = 0x1e;

const CLIENT: &[&str] = &["digital signature", "client auth"];
const SERVING: &[&str] = &["digital signature", "server auth"];
const NODE: &str = "system:node:a";

type Attribute<'a> = (&'a [u64], u8, &'a [u8]);

/// A relative name.
fn set(attributes: &[Attribute<'_>]) -> Vec<u8> {
    let all: Vec<Vec<u8>> = attributes
        .iter()
        .map(|(id, tag, value)| der::sequence(&[der::oid(id), der::tlv(*tag, value)]))
        .collect();
    der::tlv(der::SET, &all.concat())
}

fn name(sets: &[&[Attribute<'_>]]) -> Vec<u8> {
    der::sequence(&sets.iter().map(|s| set(s)).collect::<Vec<_>>())
}

fn node_name() -> Vec<u8> {
    name(&[
        &[(O, PRINTABLE, b"system:nodes")],
        &[(CN, PRINTABLE, NODE.as_bytes())],
    ])
}

/// An `extensionRequest` of extensions (identifier, value).
fn extensions(list: &[(&[u64], Vec<u8>)]) -> Vec<u8> {
    let list: Vec<Vec<u8>> = list
        .iter()
        .map(|(id, value)| der::extension(id, false, value))
        .collect();
    der::sequence(&[
        der::oid(&[1, 2, 840, 113549, 1, 9, 14]),
        der::tlv(der::SET, &der::sequence(&list)),
    ])
}

fn sans(names: &[(u8, &[u8])]) -> Vec<u8> {
    let names: Vec<Vec<u8>> = names.iter().map(|(tag, v)| der::tlv(*tag, v)).collect();
    extensions(&[(&[2, 5, 29, 17], der::sequence(&names))])
}

fn pem(der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}

/// A signed request for this name (DER), with these attributes (DER, one after the other).
fn request(key: &KeyPair, name: &[u8], attributes: &[u8]) -> Vec<u8> {
    let info = der::sequence(&[
        der::integer(&[0]),
        name.to_vec(),
        key.subject_public_key_info(),
        der::tlv(0xa0, attributes),
    ]);
    let algorithm = der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 3, 2])]);
    let signature = key.sign(&info).unwrap();
    der::sequence(&[info, algorithm, der::bit_string(&signature)])
}

fn csr(signer: &str, user: &str, usages: &[&str], request: &str) -> CertificateSigningRequest {
    CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.as_bytes().to_vec()),
            signer_name: signer.to_string(),
            usages: Some(usages.iter().map(ToString::to_string).collect()),
            username: Some(user.to_string()),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    }
}

/// A CA, and what it signed.
struct House {
    key: KeyPair,
    authority: Authority,
    ca: Vec<u8>,
    _directory: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test-ca");
        let ca = params.self_signed(&ca_key).unwrap();
        let files = CaFiles {
            cert_file: directory.path().join("ca.crt"),
            key_file: directory.path().join("ca.key"),
        };
        std::fs::write(&files.cert_file, ca.pem()).unwrap();
        std::fs::write(&files.key_file, ca_key.serialize_pem()).unwrap();
        Self {
            key: KeyPair::generate().unwrap(),
            authority: Authority::load(&files).unwrap(),
            ca: ca.der().to_vec(),
            _directory: directory,
        }
    }

    /// The signed certificate (DER), or why there is none.
    fn sign(&self, csr: &CertificateSigningRequest) -> Result<Vec<u8>, RequestError> {
        let (year, now) = (Duration::from_secs(365 * 24 * 3600), now());
        let pem = sign(csr, &self.authority, year, now, [0x81; 16]).unwrap()?;
        let certificates = tls::certificates("signed", pem.as_bytes()).unwrap();
        assert_eq!(certificates.len(), 1);
        Ok(certificates[0].to_vec())
    }

    /// What becomes of a request for this name and these attributes, by every road.
    fn check(
        &self,
        signer: &str,
        usages: &[&str],
        name: &[u8],
        attributes: &[u8],
        expect: Result<Subject, RequestError>,
    ) {
        let pem = pem(&request(&self.key, name, attributes));
        // A node that renews, a node with a bootstrap token, anybody else.
        for user in [NODE, "system:bootstrap:abcdef", "admin"] {
            let csr = csr(signer, user, usages, &pem);
            let about = format!("{signer} {user} {expect:?}");
            let approved: &[&str] = match (&expect, signer, user) {
                (Ok(_), KUBE_APISERVER_CLIENT_KUBELET, NODE) => &["selfnodeclient", "nodeclient"],
                (Ok(_), KUBE_APISERVER_CLIENT_KUBELET, _) => &["nodeclient"],
                _ => &[],
            };
            assert_eq!(recognized(&csr), approved, "{about}");
            match (self.sign(&csr), &expect) {
                (Ok(certificate), Ok(subject)) => self.check_certificate(&certificate, subject),
                (Ok(_), Err(_)) => panic!("{about}: it was signed"),
                (Err(error), expect) => assert_eq!(Err(&error), expect.as_ref(), "{about}"),
            }
        }
    }

    fn check_certificate(&self, certificate: &[u8], subject: &Subject) {
        let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
        assert!(rest.is_empty());
        let (_, ca) = x509_parser::parse_x509_certificate(&self.ca).unwrap();
        parsed.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(parsed.issuer(), ca.subject());
        assert!(!parsed.is_ca());
        // Byte for byte what was understood, and nothing that came along.
        assert_eq!(parsed.subject().as_raw(), subject.to_der());
        let names = parsed.subject().iter_organization();
        let groups: Vec<&str> = names.map(|o| o.as_str().unwrap()).collect();
        assert_eq!(groups, subject.organizations());
        assert_eq!(parsed.public_key().raw, self.key.subject_public_key_info());
    }
}

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn node() -> Subject {
    Subject::new(NODE, &["system:nodes"])
}

fn bmp(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|b| [0, b]).collect()
}

fn universal(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|b| [0, 0, 0, b]).collect()
}

/// A second group in any way a certificate could carry it never passes, whatever the string's type and wherever it stands.
#[test]
fn a_group_of_ones_own_choice() {
    let house = House::new();
    let masters = "system:masters";
    let nodes: Attribute<'_> = (O, PRINTABLE, b"system:nodes");
    let cn: Attribute<'_> = (CN, PRINTABLE, NODE.as_bytes());
    let organization = || "2.5.4.10".to_string();
    let unsupported = |tag| SubjectError::StringType {
        attribute: organization(),
        tag,
    };
    for (tag, value, error) in [
        (UTF8, masters.as_bytes().to_vec(), None),
        (PRINTABLE, masters.as_bytes().to_vec(), None),
        (IA5, masters.as_bytes().to_vec(), None),
        (T61, masters.as_bytes().to_vec(), Some(unsupported(T61))),
        (BMP, bmp(masters), Some(unsupported(BMP))),
        (UNIVERSAL, universal(masters), Some(unsupported(UNIVERSAL))),
        (0x04, masters.as_bytes().to_vec(), Some(unsupported(0x04))),
        (0x2c, masters.as_bytes().to_vec(), Some(unsupported(0x2c))),
        (
            UTF8,
            b"system:masters\0".to_vec(),
            Some(SubjectError::Characters {
                attribute: organization(),
            }),
        ),
    ] {
        let second: Attribute<'_> = (O, tag, &value);
        let alone = match &error {
            Some(error) => RequestError::Subject(error.clone()),
            None => RequestError::OrganizationNotSystemNodes,
        };
        let multi = match &error {
            Some(error) => RequestError::Subject(error.clone()),
            None => RequestError::MultiValued,
        };
        for (sets, expect) in [
            (name(&[&[nodes], &[second], &[cn]]), &alone),
            (name(&[&[second], &[nodes], &[cn]]), &alone),
            (name(&[&[nodes], &[cn], &[second]]), &alone),
            (name(&[&[nodes, second], &[cn]]), &multi),
            (name(&[&[second, nodes], &[cn]]), &multi),
            (name(&[&[nodes], &[cn, second]]), &multi),
        ] {
            for (signer, usages) in [
                (KUBE_APISERVER_CLIENT_KUBELET, CLIENT),
                (KUBELET_SERVING, SERVING),
            ] {
                let expect = match expect {
                    RequestError::Subject(e) => RequestError::Subject(e.clone()),
                    RequestError::MultiValued => RequestError::MultiValued,
                    _ => RequestError::OrganizationNotSystemNodes,
                };
                house.check(signer, usages, &sets, &[], Err(expect));
            }
        }
        // Where several groups are allowed, those that were read are those that are signed.
        for signer in [KUBE_APISERVER_CLIENT, LEGACY_UNKNOWN] {
            let sets = name(&[&[nodes], &[second], &[cn]]);
            let expect = match &error {
                Some(error) => Err(RequestError::Subject(error.clone())),
                None => Subject::parse(&sets).map_err(RequestError::Subject),
            };
            house.check(signer, CLIENT, &sets, &[], expect);
            let sets = name(&[&[nodes, second], &[cn]]);
            let expect = match &error {
                Some(error) => RequestError::Subject(error.clone()),
                None => RequestError::MultiValued,
            };
            house.check(signer, CLIENT, &sets, &[], Err(expect));
        }
    }
}

#[test]
fn names_of_nodes() {
    let house = House::new();
    let check = |sets: &[&[Attribute<'_>]], expect: Result<Subject, RequestError>| {
        house.check(
            KUBE_APISERVER_CLIENT_KUBELET,
            CLIENT,
            &name(sets),
            &[],
            expect,
        );
    };
    let nodes: Attribute<'_> = (O, UTF8, b"system:nodes");
    let cn: Attribute<'_> = (CN, UTF8, NODE.as_bytes());
    let attribute = |name: &str| RequestError::Attribute(name.into());
    check(&[&[nodes], &[cn]], Ok(node()));
    check(&[&[(O, PRINTABLE, b"system:nodes")], &[cn]], Ok(node()));
    check(&[&[(O, IA5, b"system:nodes")], &[cn]], Ok(node()));
    let several = || RequestError::Subject(SubjectError::SeveralCommonNames);
    for second in ["kube-apiserver", NODE] {
        let second: Attribute<'_> = (CN, UTF8, second.as_bytes());
        check(&[&[nodes], &[cn], &[second]], Err(several()));
        check(&[&[nodes], &[second], &[cn]], Err(several()));
        check(&[&[nodes], &[cn, second]], Err(several()));
    }
    check(
        &[&[nodes], &[cn], &[(CN, BMP, &bmp("kube-apiserver"))]],
        Err(RequestError::Subject(SubjectError::StringType {
            attribute: "2.5.4.3".into(),
            tag: BMP,
        })),
    );
    check(&[&[nodes, cn]], Err(RequestError::MultiValued));
    check(
        &[&[nodes], &[cn], &[(EMAIL, IA5, b"a@example.com")]],
        Err(attribute("1.2.840.113549.1.9.1")),
    );
    check(
        &[&[nodes], &[cn], &[(USER_ID, UTF8, b"kube-apiserver")]],
        Err(attribute("0.9.2342.19200300.100.1.1")),
    );
    check(
        &[&[nodes], &[cn], &[(KUBERNETES_UID, UTF8, b"7")]],
        Err(attribute("UID")),
    );
    check(&[&[cn]], Err(RequestError::OrganizationNotSystemNodes));
    check(&[&[nodes]], Err(RequestError::CommonNameNotSystemNode));
    check(
        &[&[nodes], &[(CN, UTF8, b"kube-apiserver")]],
        Err(RequestError::CommonNameNotSystemNode),
    );
    let unit: &[Attribute<'_>] = &[(OU, UTF8, b"rack")];
    let with_unit = Subject::parse(&name(&[unit, &[nodes], &[cn]])).unwrap();
    check(&[unit, &[nodes], &[cn]], Ok(with_unit));
    check(&[], Err(RequestError::OrganizationNotSystemNodes));
}

#[test]
fn alternative_names() {
    let house = House::new();
    let dns: (u8, &[u8]) = (0x82, b"a.example");
    let ip: (u8, &[u8]) = (0x87, &[10, 0, 0, 1]);
    let email: (u8, &[u8]) = (0x81, b"a@example.com");
    let uri: (u8, &[u8]) = (0x86, b"spiffe://a/b");
    let client = |names: &[(u8, &[u8])], expect: RequestError| {
        let signer = KUBE_APISERVER_CLIENT_KUBELET;
        house.check(signer, CLIENT, &node_name(), &sans(names), Err(expect));
    };
    client(&[dns], RequestError::DnsSanNotAllowed);
    client(&[ip], RequestError::IpSanNotAllowed);
    client(&[email], RequestError::EmailSanNotAllowed);
    client(&[uri], RequestError::UriSanNotAllowed);
    let serving = |names: &[(u8, &[u8])], expect: Result<Subject, RequestError>| {
        let signer = KUBELET_SERVING;
        house.check(signer, SERVING, &node_name(), &sans(names), expect);
    };
    serving(&[dns, ip], Ok(node()));
    serving(&[(0x87, &[0; 16])], Ok(node()));
    serving(&[], Err(RequestError::DnsOrIpSanRequired));
    serving(&[dns, email], Err(RequestError::EmailSanNotAllowed));
    serving(&[dns, uri], Err(RequestError::UriSanNotAllowed));
    // What no signer allows: other kinds, addresses that are none, names with other characters.
    for (names, expect) in [
        ([dns, (0xa0, &[][..])], RequestError::SanType(0xa0)),
        ([dns, (0xa4, &[0x30, 0])], RequestError::SanType(0xa4)),
        ([dns, (0x88, &[0x2a])], RequestError::SanType(0x88)),
        ([dns, (0x87, &[1, 2, 3])], RequestError::San),
        ([dns, (0x82, b"")], RequestError::San),
        ([dns, (0x82, b"a\0.example")], RequestError::San),
        ([dns, (0x82, "ä".as_bytes())], RequestError::San),
    ] {
        for signer in [KUBELET_SERVING, KUBE_APISERVER_CLIENT, LEGACY_UNKNOWN] {
            let usages = if signer == KUBELET_SERVING {
                SERVING
            } else {
                CLIENT
            };
            let pem = pem(&request(&house.key, &node_name(), &sans(&names)));
            let signed = house.sign(&csr(signer, NODE, usages, &pem));
            assert_eq!(signed.as_ref(), Err(&expect), "{signer} {names:02x?}");
        }
    }
    // The same extension twice, in one list or in two.
    let value = || der::sequence(&[der::tlv(0x82, b"a.example")]);
    let twice = extensions(&[(&[2, 5, 29, 17], value()), (&[2, 5, 29, 17], value())]);
    let two = [sans(&[dns]), sans(&[ip])].concat();
    for attributes in [twice, two] {
        house.check(
            KUBELET_SERVING,
            SERVING,
            &node_name(),
            &attributes,
            Err(RequestError::DuplicateExtensions),
        );
    }
    // Constraints asked for are not given.
    let ca = extensions(&[(&[2, 5, 29, 19], der::sequence(&[vec![1, 1, 0xff]]))]);
    let signer = KUBE_APISERVER_CLIENT_KUBELET;
    house.check(signer, CLIENT, &node_name(), &ca, Ok(node()));
}

#[test]
fn usages_of_signers() {
    let house = House::new();
    let client_usages =
        || RequestError::Usages("client auth digital signature key encipherment".into());
    let serving_usages =
        || RequestError::Usages("digital signature key encipherment server auth".into());
    let san = sans(&[(0x82, b"a.example")]);
    let check = |signer: &str, usages: &[&str], expect: Result<(), RequestError>| {
        let san: &[u8] = if signer == KUBELET_SERVING { &san } else { &[] };
        house.check(signer, usages, &node_name(), san, expect.map(|()| node()));
    };
    let rsa = ["digital signature", "key encipherment", "client auth"];
    check(KUBE_APISERVER_CLIENT_KUBELET, &rsa, Ok(()));
    check(KUBE_APISERVER_CLIENT_KUBELET, CLIENT, Ok(()));
    check(KUBE_APISERVER_CLIENT_KUBELET, SERVING, Err(client_usages()));
    let both = ["digital signature", "client auth", "server auth"];
    check(KUBE_APISERVER_CLIENT_KUBELET, &both, Err(client_usages()));
    check(KUBE_APISERVER_CLIENT_KUBELET, &[], Err(client_usages()));
    check(KUBELET_SERVING, SERVING, Ok(()));
    check(KUBELET_SERVING, &both, Err(serving_usages()));
    check(KUBE_APISERVER_CLIENT, CLIENT, Ok(()));
    check(KUBE_APISERVER_CLIENT, &["client auth"], Ok(()));
    check(
        KUBE_APISERVER_CLIENT,
        SERVING,
        Err(RequestError::InvalidClientUsage("server auth".into())),
    );
    check(
        KUBE_APISERVER_CLIENT,
        &["digital signature"],
        Err(RequestError::MissingClientAuth),
    );
    check(LEGACY_UNKNOWN, &["server auth"], Ok(()));
    let other = "example.com/signer";
    check(other, CLIENT, Err(RequestError::Signer(other.into())));
}

/// What is no request at all, or one that another parser might read differently.
#[test]
fn requests_that_are_not_understood() {
    let house = House::new();
    let good = request(&house.key, &node_name(), &[]);
    let text = pem(&good);
    assert!(Request::parse(text.as_bytes()).is_ok());
    let with_text = format!("Certificate Request:\n    Data: x\n{text}");
    assert!(Request::parse(with_text.as_bytes()).is_ok());
    assert!(Request::parse(text.replace('\n', "\r\n").as_bytes()).is_ok());
    let check = |pem: &str, expect: RequestError| {
        assert_eq!(Request::parse(pem.as_bytes()), Err(expect), "{pem}");
        let csr = csr(KUBE_APISERVER_CLIENT_KUBELET, NODE, CLIENT, pem);
        assert_eq!(recognized(&csr), [""; 0]);
        assert!(house.sign(&csr).is_err());
    };
    check("", RequestError::Pem);
    check("nothing", RequestError::Pem);
    check(
        &text.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
        RequestError::Pem,
    );
    check(
        &text.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        RequestError::Pem,
    );
    check(&(text.clone() + &text), RequestError::Pem);
    check(
        &format!("-----BEGIN X-----\n%\n-----END X-----\n{text}"),
        RequestError::Pem,
    );
    check(
        &format!("-----BEGIN CERTIFICATE REQUEST----- \n{text}"),
        RequestError::Pem,
    );
    check(&format!("x{text}"), RequestError::Pem);
    check(
        &text.replace("REQUEST-----\nM", "REQUEST-----\nA: b\n\nM"),
        RequestError::Pem,
    );
    check(&(text.clone() + &" ".repeat(65_536)), RequestError::TooLong);

    let der = |bytes: Vec<u8>| pem(&bytes);
    let mut trailing = good.clone();
    trailing.push(0);
    assert!(matches!(
        Request::parse(der(trailing).as_bytes()),
        Err(RequestError::Der(_))
    ));
    for end in 0..good.len() {
        let cut = der(good[..end].to_vec());
        assert!(Request::parse(cut.as_bytes()).is_err(), "{end}");
    }
    // No byte of it can be another: the signature covers the whole, the rest is the signature and its frame.
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        assert!(Request::parse(der(changed).as_bytes()).is_err(), "{at}");
    }
    // Somebody else's key.
    let other = KeyPair::generate().unwrap();
    let info = der::sequence(&[
        der::integer(&[0]),
        node_name(),
        other.subject_public_key_info(),
        der::tlv(0xa0, &[]),
    ]);
    let algorithm = der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 3, 2])]);
    let stolen = |algorithm: Vec<u8>| {
        let signature = house.key.sign(&info).unwrap();
        der(der::sequence(&[
            info.clone(),
            algorithm,
            der::bit_string(&signature),
        ]))
    };
    check(&stolen(algorithm), RequestError::Signature);
    // ecdsa-with-SHA1, and none at all.
    let sha1 = der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 1])]);
    check(&stolen(sha1), RequestError::Algorithm);
    check(&stolen(der::sequence(&[])), RequestError::Algorithm);
}

#[test]
fn keys_of_every_kind_are_signed() {
    let house = House::new();
    for kind in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let key = KeyPair::generate_for(kind).unwrap();
        let mut params = CertificateParams::new(vec!["a.example".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, NODE);
        let made = params.serialize_request(&key).unwrap().pem().unwrap();
        let signed = house
            .sign(&csr(KUBELET_SERVING, NODE, SERVING, &made))
            .unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&signed).unwrap();
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
        let validity = parsed.validity();
        assert_eq!(validity.not_before.timestamp(), now().as_second() - 300);
        let usages = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usages.server_auth && !usages.client_auth);
        let bits = parsed.key_usage().unwrap().unwrap().value;
        assert!(bits.digital_signature() && !bits.key_cert_sign());
        let names = parsed.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(names.general_names.len(), 1);
    }
}

#[test]
fn usages_nobody_knows_are_not_signed() {
    let house = House::new();
    let pem = pem(&request(&house.key, &node_name(), &[]));
    let csr = csr(LEGACY_UNKNOWN, "admin", &["sing"], &pem);
    let day = Duration::from_secs(24 * 3600);
    assert!(sign(&csr, &house.authority, day, now(), [1; 16]).is_err());
}
