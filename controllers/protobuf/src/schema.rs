//! The table of messages.

/// One of upstream's types.
#[derive(Debug)]
pub struct Message {
    pub(crate) name: &'static str,
    /// Its place in the table.
    pub(crate) index: u16,
    /// By number.
    pub(crate) fields: &'static [Field],
}

#[derive(Debug)]
pub(crate) struct Field {
    pub number: u32,
    /// `-`: it has none, as its fields stand in the message itself ([`Self::inline`]).
    pub json: &'static str,
    pub rule: Rule,
    pub kind: Kind,
    /// JSON leaves it out when it is zero.
    pub omit_zero: bool,
    /// Its fields are the message's own in JSON.
    pub inline: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    One,
    List,
    /// From strings.
    Map,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    String,
    /// Base64 in JSON.
    Bytes,
    Int,
    Bool,
    /// `resource.Quantity`: a string in JSON.
    Quantity,
    /// `metav1.Time`: to the second in JSON.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// `intstr.IntOrString`.
    IntOrString,
    /// Bytes that are JSON: `RawExtension`, `FieldsV1`, `JSON`.
    Raw,
    /// A list that is a message: `ExtraValue`.
    Strings,
    Message(u16),
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// The message of a kind; `None`: not built in, or its JSON is not told by a table (CustomResourceDefinition).
pub fn message(group: &str, version: &str, kind: &str) -> Option<&'static Message> {
    let wanted = (group, version, kind);
    let at = KINDS.binary_search_by(|(g, v, k, _)| (*g, *v, *k).cmp(&wanted));
    at.ok().map(|at| at_index(KINDS[at].3))
}

/// The message of upstream's name, as `core.v1.Container`.
pub(crate) fn named(name: &str) -> Option<&'static Message> {
    MESSAGES.iter().find(|message| message.name == name)
}

pub(crate) fn len() -> usize {
    MESSAGES.len()
}

pub(crate) fn at_index(index: u16) -> &'static Message {
    &MESSAGES[usize::from(index)]
}

impl Message {
    /// `hint`: where the field is likely to stand, after the one before.
    pub(crate) fn by_number(&self, number: u32, hint: usize) -> Option<usize> {
        let fields = self.fields;
        if fields.get(hint).is_some_and(|f| f.number == number) {
            return Some(hint);
        }
        fields.binary_search_by_key(&number, |f| f.number).ok()
    }
}
