//! The name of a certificate or of a request for one: the only place in the house that reads it.
//!
//! CN is a user, each O a group, so a name that two readers understand differently is somebody else's identity. This one refuses what
//! it does not wholly understand: several common names, strings of types whose characters are open to reading, empty names and groups.
//! Pure. Upstream: `CommonNameUserConversion` in `k8s.io/apiserver/pkg/authentication/request/x509`, Go's `crypto/x509/pkix`.

use crate::der::{self, DerError, Reader};

const UTF8_STRING: u8 = 0x0c;
const NUMERIC_STRING: u8 = 0x12;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;

/// The attributes that are understood: those Go's `pkix.Name` knows, and Kubernetes' own for a user's UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeType {
    /// `CN`: the user.
    CommonName,
    /// `O`: a group.
    Organization,
    /// `OU`.
    OrganizationalUnit,
    /// `C`.
    Country,
    /// `L`.
    Locality,
    /// `ST`.
    Province,
    /// `STREET`.
    StreetAddress,
    /// `POSTALCODE`.
    PostalCode,
    /// `SERIALNUMBER`.
    SerialNumber,
    /// 1.3.6.1.4.1.57683.2: the user's UID. Upstream: feature `AllowParsingUserUIDFromCertAuth`, on since 1.34.
    Uid,
}

const TYPES: &[(AttributeType, &[u8])] = &[
    (AttributeType::CommonName, &[0x55, 4, 3]),
    (AttributeType::Organization, &[0x55, 4, 10]),
    (AttributeType::OrganizationalUnit, &[0x55, 4, 11]),
    (AttributeType::Country, &[0x55, 4, 6]),
    (AttributeType::Locality, &[0x55, 4, 7]),
    (AttributeType::Province, &[0x55, 4, 8]),
    (AttributeType::StreetAddress, &[0x55, 4, 9]),
    (AttributeType::PostalCode, &[0x55, 4, 17]),
    (AttributeType::SerialNumber, &[0x55, 4, 5]),
    (AttributeType::Uid, &[0x2b, 6, 1, 4, 1, 0x83, 0xc2, 0x53, 2]),
];

/// Why a name is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It is no DER.
    #[error("subject is not valid DER: {0}")]
    Der(#[from] DerError),
    /// More than one CN: which of them is the user?
    #[error("subject has several common names")]
    SeveralCommonNames,
    /// More than one UID.
    #[error("subject has several UIDs")]
    SeveralUids,
    /// A string of a type that is not accepted (T61String, BMPString, UniversalString, …).
    #[error("subject attribute {attribute} is a string of an unsupported type (tag {tag:#04x})")]
    StringType {
        /// Its type in dotted form.
        attribute: String,
        /// The tag of its value.
        tag: u8,
    },
    /// Characters its type does not have, or control characters.
    #[error("subject attribute {attribute} contains invalid characters")]
    Characters {
        /// Its type in dotted form.
        attribute: String,
    },
    /// A user, a group or a UID that is empty.
    #[error("subject attribute {attribute} is empty")]
    Empty {
        /// Its type in dotted form.
        attribute: String,
    },
}

/// A name that was understood. It is written anew by [`Self::to_der`], never copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    attributes: Vec<(AttributeType, String)>,
    unknown: Vec<String>,
    multi_valued: bool,
}

impl Subject {
    /// A name of a user and groups.
    pub fn new(common_name: &str, organizations: &[&str]) -> Self {
        let groups = organizations
            .iter()
            .map(|o| (AttributeType::Organization, (*o).to_string()));
        let user = Some((AttributeType::CommonName, common_name.to_string()));
        Self {
            attributes: groups.chain(user.filter(|(_, n)| !n.is_empty())).collect(),
            ..Self::default()
        }
    }

    /// Reads a `Name` (DER, with its outer sequence).
    ///
    /// # Errors
    /// See [`SubjectError`]. Attributes of other types than [`AttributeType`] are no error, see [`Self::unknown`].
    pub fn parse(name: &[u8]) -> Result<Self, SubjectError> {
        let mut reader = Reader::new(name);
        let mut sets = reader.enter(der::SEQUENCE)?;
        reader.finish()?;
        let mut subject = Self::default();
        while !sets.is_empty() {
            let mut set = sets.enter(der::SET)?;
            subject.parse_attribute(&mut set)?;
            while !set.is_empty() {
                subject.multi_valued = true;
                subject.parse_attribute(&mut set)?;
            }
        }
        if subject.all(AttributeType::CommonName).count() > 1 {
            return Err(SubjectError::SeveralCommonNames);
        }
        if subject.all(AttributeType::Uid).count() > 1 {
            return Err(SubjectError::SeveralUids);
        }
        Ok(subject)
    }

    fn parse_attribute(&mut self, set: &mut Reader<'_>) -> Result<(), SubjectError> {
        let mut attribute = set.enter(der::SEQUENCE)?;
        let id = attribute.expect(der::OID)?.content;
        let value = attribute.element()?;
        attribute.finish()?;
        let Some((kind, _)) = TYPES.iter().find(|(_, known)| *known == id) else {
            self.unknown.push(der::dotted(id));
            return Ok(());
        };
        let dotted = || der::dotted(id);
        let allowed: fn(char) -> bool = match value.tag {
            UTF8_STRING => |c| !c.is_control(),
            IA5_STRING => |c| c.is_ascii() && !c.is_ascii_control(),
            PRINTABLE_STRING => is_printable,
            NUMERIC_STRING => |c| c.is_ascii_digit() || c == ' ',
            tag => {
                return Err(SubjectError::StringType {
                    attribute: dotted(),
                    tag,
                });
            }
        };
        let text = std::str::from_utf8(value.content)
            .ok()
            .filter(|text| text.chars().all(allowed))
            .ok_or_else(|| SubjectError::Characters {
                attribute: dotted(),
            })?;
        let identity = [
            AttributeType::CommonName,
            AttributeType::Organization,
            AttributeType::Uid,
        ];
        if text.is_empty() && identity.contains(kind) {
            return Err(SubjectError::Empty {
                attribute: dotted(),
            });
        }
        self.attributes.push((*kind, text.to_string()));
        Ok(())
    }

    fn all(&self, kind: AttributeType) -> impl Iterator<Item = &str> {
        self.attributes
            .iter()
            .filter(move |(k, _)| *k == kind)
            .map(|(_, value)| value.as_str())
    }

    /// The user; empty when there is none.
    pub fn common_name(&self) -> &str {
        self.all(AttributeType::CommonName)
            .next()
            .unwrap_or_default()
    }

    /// The groups.
    pub fn organizations(&self) -> Vec<&str> {
        self.all(AttributeType::Organization).collect()
    }

    /// The user's UID, if it is given.
    pub fn uid(&self) -> Option<&str> {
        self.all(AttributeType::Uid).next()
    }

    /// Attributes of types that are not understood, in dotted form.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// Whether a relative name has several attributes. Go writes several groups in this way.
    pub fn is_multi_valued(&self) -> bool {
        self.multi_valued
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.attributes.is_empty()
    }

    /// Writes what was understood: one attribute a relative name, PrintableString where the characters allow, UTF8String where not.
    pub fn to_der(&self) -> Vec<u8> {
        let names: Vec<Vec<u8>> = self
            .attributes
            .iter()
            .filter_map(|(kind, value)| {
                let (_, id) = TYPES.iter().find(|(known, _)| known == kind)?;
                let tag = if value.chars().all(is_printable) {
                    PRINTABLE_STRING
                } else {
                    UTF8_STRING
                };
                let attribute =
                    der::sequence(&[der::tlv(der::OID, id), der::tlv(tag, value.as_bytes())]);
                Some(der::tlv(der::SET, &attribute))
            })
            .collect();
        der::sequence(&names)
    }
}

/// The characters of PrintableString; `*` and `&` are beyond the standard, but common, and Go takes them.
fn is_printable(c: char) -> bool {
    c.is_ascii_alphanumeric() || " '()+,-./:=?*&".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CN: &[u8] = &[0x55, 4, 3];
    const O: &[u8] = &[0x55, 4, 10];
    const OU: &[u8] = &[0x55, 4, 11];
    const EMAIL: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1];
    const UID: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xc2, 0x53, 2];
    const T61_STRING: u8 = 0x14;
    const UNIVERSAL_STRING: u8 = 0x1c;
    const BMP_STRING: u8 = 0x1e;

    type Attribute<'a> = (&'a [u8], u8, &'a [u8]);

    fn name(sets: &[&[Attribute<'_>]]) -> Vec<u8> {
        let sets: Vec<Vec<u8>> = sets
            .iter()
            .map(|attributes| {
                let all: Vec<Vec<u8>> = attributes
                    .iter()
                    .map(|(id, tag, value)| {
                        der::sequence(&[der::tlv(der::OID, id), der::tlv(*tag, value)])
                    })
                    .collect();
                der::tlv(der::SET, &all.concat())
            })
            .collect();
        der::sequence(&sets)
    }

    fn bmp(text: &str) -> Vec<u8> {
        text.bytes().flat_map(|b| [0, b]).collect()
    }

    fn universal(text: &str) -> Vec<u8> {
        text.bytes().flat_map(|b| [0, 0, 0, b]).collect()
    }

    #[test]
    fn names_that_are_understood() {
        let check = |sets: &[&[Attribute<'_>]], common_name: &str, organizations: &[&str]| {
            let der = name(sets);
            let subject = Subject::parse(&der).unwrap();
            assert_eq!(subject.common_name(), common_name);
            assert_eq!(subject.organizations(), organizations);
            // What is written is read as the same, one attribute a relative name.
            let again = Subject::parse(&subject.to_der()).unwrap();
            assert_eq!(again.attributes, subject.attributes);
            assert!(!again.is_multi_valued() && again.unknown().is_empty());
        };
        check(&[], "", &[]);
        check(
            &[
                &[(O, PRINTABLE_STRING, b"system:nodes")],
                &[(CN, UTF8_STRING, b"system:node:a")],
            ],
            "system:node:a",
            &["system:nodes"],
        );
        check(
            &[
                &[(O, UTF8_STRING, b"a"), (O, IA5_STRING, b"b_")],
                &[(CN, UTF8_STRING, "höhle".as_bytes())],
                &[(O, NUMERIC_STRING, b"12")],
            ],
            "höhle",
            &["a", "b_", "12"],
        );
        check(
            &[&[(OU, UTF8_STRING, b"")], &[(CN, UTF8_STRING, b"x@y")]],
            "x@y",
            &[],
        );
        let uid = Subject::parse(&name(&[
            &[(CN, UTF8_STRING, b"a")],
            &[(UID, UTF8_STRING, b"7")],
        ]));
        assert_eq!(uid.unwrap().uid(), Some("7"));
        let unknown = Subject::parse(&name(&[&[
            (CN, UTF8_STRING, b"a"),
            (EMAIL, T61_STRING, b"\xff"),
        ]]))
        .unwrap();
        assert!(unknown.is_multi_valued());
        assert_eq!(unknown.unknown(), ["1.2.840.113549.1.9.1"]);
        assert_eq!(Subject::new("a", &["b", "c"]).organizations(), ["b", "c"]);
    }

    #[test]
    fn names_that_are_refused() {
        let check = |sets: &[&[Attribute<'_>]], expect: SubjectError| {
            assert_eq!(Subject::parse(&name(sets)), Err(expect), "{sets:02x?}");
        };
        let masters = "system:masters";
        let node: &[Attribute<'_>] = &[(O, UTF8_STRING, b"system:nodes")];
        let organization = "2.5.4.10".to_string();
        for (tag, value) in [
            (T61_STRING, masters.as_bytes().to_vec()),
            (BMP_STRING, bmp(masters)),
            (UNIVERSAL_STRING, universal(masters)),
            (der::OCTET_STRING, masters.as_bytes().to_vec()),
            (der::SEQUENCE, vec![]),
            (0x2c, masters.as_bytes().to_vec()),
            (0x80, masters.as_bytes().to_vec()),
        ] {
            let attribute = organization.clone();
            check(
                &[node, &[(O, tag, &value)]],
                SubjectError::StringType { attribute, tag },
            );
        }
        for (tag, value) in [
            (UTF8_STRING, &b"\xff"[..]),
            (UTF8_STRING, b"a\0b"),
            (UTF8_STRING, b"a\nb"),
            (UTF8_STRING, "a\u{85}".as_bytes()),
            (PRINTABLE_STRING, b"a_b"),
            (PRINTABLE_STRING, b"a@b"),
            (IA5_STRING, b"\x80"),
            (IA5_STRING, b"\x7f"),
            (NUMERIC_STRING, b"a"),
        ] {
            let attribute = organization.clone();
            check(
                &[node, &[(O, tag, value)]],
                SubjectError::Characters { attribute },
            );
        }
        let attribute = organization;
        check(
            &[&[(O, UTF8_STRING, b"")]],
            SubjectError::Empty { attribute },
        );
        let two: Attribute<'_> = (CN, UTF8_STRING, b"kube-apiserver");
        check(
            &[&[(CN, UTF8_STRING, b"system:node:a")], &[two]],
            SubjectError::SeveralCommonNames,
        );
        check(
            &[&[(CN, UTF8_STRING, b"system:node:a"), two]],
            SubjectError::SeveralCommonNames,
        );
        check(
            &[&[(UID, UTF8_STRING, b"1"), (UID, UTF8_STRING, b"1")]],
            SubjectError::SeveralUids,
        );
        // An empty set, a set within no sequence, something behind the name.
        check(&[&[]], SubjectError::Der(DerError::Truncated));
        let mut trailing = name(&[&[two]]);
        trailing.push(0);
        assert_eq!(
            Subject::parse(&trailing),
            Err(SubjectError::Der(DerError::Trailing))
        );
        assert!(Subject::parse(&der::tlv(der::SET, &[])).is_err());
    }

    /// Whatever is read is written so that it is read as the same, and nothing that comes in makes the reader fall over.
    #[test]
    fn names_changed_at_random() {
        let seed = name(&[
            &[
                (O, PRINTABLE_STRING, b"system:nodes"),
                (O, UTF8_STRING, b"b"),
            ],
            &[(UID, IA5_STRING, b"7")],
            &[(CN, UTF8_STRING, "system:node:\u{e9}".as_bytes())],
        ]);
        let mut read = 0;
        for _ in 0..20_000 {
            let mut data = seed.clone();
            for _ in 0..rand::random_range(1..4) {
                let at = rand::random_range(0..data.len());
                match rand::random_range(0..3) {
                    0 => data[at] = rand::random(),
                    1 => data[at] ^= 1u8 << rand::random_range(0..8),
                    _ => data.truncate(at.max(1)),
                }
            }
            if let Ok(subject) = Subject::parse(&data) {
                read += 1;
                let again = Subject::parse(&subject.to_der()).unwrap();
                assert_eq!(again.attributes, subject.attributes, "{data:02x?}");
            }
        }
        assert!(read > 1000, "{read}");
    }
}
