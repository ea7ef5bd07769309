//! A serde format that writes a message from the names that JSON has.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, Serializer};

use crate::envelope::seal;
use crate::schema::{Field, Kind, Message, Rule, at_index};
use crate::wire::{Reader, VARINT, put_bytes, put_tag, put_varint};
use crate::{Error, time};

macro_rules! refused {
    ($($method:ident($type:ty)),*) => {
        $(fn $method(self, _: $type) -> Result<Self::Ok, Error> {
            self.refuse(stringify!($type))
        })*
    };
}

macro_rules! refused_shapes {
    () => {
        type SerializeTuple = Impossible<Self::Ok, Error>;
        type SerializeTupleStruct = Impossible<Self::Ok, Error>;
        type SerializeTupleVariant = Impossible<Self::Ok, Error>;
        type SerializeStructVariant = Impossible<Self::Ok, Error>;

        fn serialize_unit_struct(self, _: &'static str) -> Result<Self::Ok, Error> {
            self.refuse("a unit")
        }
        fn serialize_newtype_variant<T: Serialize + ?Sized>(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: &T,
        ) -> Result<Self::Ok, Error> {
            self.refuse("a variant")
        }
        fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Error> {
            self.refuse("a tuple")
        }
        fn serialize_tuple_struct(
            self,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleStruct, Error> {
            self.refuse("a tuple")
        }
        fn serialize_tuple_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleVariant, Error> {
            self.refuse("a variant")
        }
        fn serialize_struct_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeStructVariant, Error> {
            self.refuse("a variant")
        }
    };
}

mod text;

use text::Text;

/// Writes an object with its envelope.
///
/// # Errors
/// It has a field that the message has not, or one with a value that the field cannot hold.
pub fn to_vec<T: Serialize>(
    message: &'static Message,
    (api_version, kind): (&str, &str),
    object: &T,
) -> Result<Vec<u8>, Error> {
    Ok(seal(api_version, kind, &to_message(message, object)?))
}

/// Writes an object as its message alone.
///
/// # Errors
/// As [`to_vec`].
pub fn to_message<T: Serialize>(message: &'static Message, object: &T) -> Result<Vec<u8>, Error> {
    let mut raw = Vec::with_capacity(512);
    object.serialize(MessageWriter {
        message,
        out: &mut raw,
    })?;
    Ok(raw)
}

/// A message without tag and length.
struct MessageWriter<'a> {
    message: &'static Message,
    out: &'a mut Vec<u8>,
}

impl<'a> MessageWriter<'a> {
    fn begin(self) -> FieldsWriter<'a> {
        FieldsWriter {
            message: self.message,
            number: None,
            to: self.out,
            out: Vec::with_capacity(256),
            key: String::new(),
            inlined: Vec::new(),
        }
    }

    fn refuse<T>(&self, what: &str) -> Result<T, Error> {
        Err(Error::Other(format!(
            "{}: {what} is no object",
            self.message.name
        )))
    }
}

/// The fields of a message. Those of inlined messages are gathered until the end.
struct FieldsWriter<'a> {
    message: &'static Message,
    /// As which field it is written in the end; `None`: as it is.
    number: Option<u32>,
    to: &'a mut Vec<u8>,
    out: Vec<u8>,
    key: String,
    inlined: Vec<(&'static Field, Vec<u8>)>,
}

impl FieldsWriter<'_> {
    fn write<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Error> {
        if let Some(field) = own_field(self.message, name) {
            return write_field(field, &mut self.out, value);
        }
        for outer in self.message.fields.iter().filter(|f| f.inline) {
            let Kind::Message(index) = outer.kind else {
                continue;
            };
            let Some(found) = path(at_index(index), name) else {
                continue;
            };
            let at = match self
                .inlined
                .iter()
                .position(|(f, _)| f.number == outer.number)
            {
                Some(at) => at,
                None => {
                    self.inlined.push((outer, Vec::new()));
                    self.inlined.len() - 1
                }
            };
            let out = &mut self.inlined[at].1;
            return write_at(&found, out, value);
        }
        // Of the object as a whole: its envelope says it.
        if name == "apiVersion" || name == "kind" {
            return Ok(());
        }
        Err(Error::Unknown {
            message: self.message.name,
            field: name.to_owned(),
        })
    }

    fn finish(mut self) {
        for (field, bytes) in self.inlined {
            put_bytes(&mut self.out, field.number, &bytes);
        }
        match self.number {
            Some(number) => put_bytes(self.to, number, &self.out),
            None => self.to.extend_from_slice(&self.out),
        }
    }
}

fn own_field(message: &'static Message, name: &str) -> Option<&'static Field> {
    message.fields.iter().find(|f| !f.inline && f.json == name)
}

/// The fields to go through, the last with that name: inlined messages may hold inlined ones.
fn path(message: &'static Message, name: &str) -> Option<Vec<&'static Field>> {
    if let Some(field) = own_field(message, name) {
        return Some(vec![field]);
    }
    message
        .fields
        .iter()
        .filter(|f| f.inline)
        .find_map(|outer| {
            let Kind::Message(index) = outer.kind else {
                return None;
            };
            let mut found = path(at_index(index), name)?;
            found.insert(0, outer);
            Some(found)
        })
}

fn write_at<T: Serialize + ?Sized>(
    fields: &[&'static Field],
    out: &mut Vec<u8>,
    value: &T,
) -> Result<(), Error> {
    match fields {
        [field] => write_field(field, out, value),
        [outer, rest @ ..] => {
            // Messages that come twice are merged by whoever reads them.
            let mut inner = Vec::new();
            write_at(rest, &mut inner, value)?;
            put_bytes(out, outer.number, &inner);
            Ok(())
        }
        [] => Ok(()),
    }
}

fn write_field<T: Serialize + ?Sized>(
    field: &'static Field,
    out: &mut Vec<u8>,
    value: &T,
) -> Result<(), Error> {
    match field.rule {
        Rule::One => write_one(field, out, value),
        Rule::List | Rule::Map => value.serialize(ValueWriter {
            field,
            out,
            one: false,
        }),
    }
}

/// One item, or the only one.
/// JSON in the bytes that Go writes: `<`, `>`, `&` and two separators of lines are escaped. Who compares such bytes finds them equal.
///
/// Go: `json.Marshal`.
pub fn escape(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let mut rest = json;
    while let Some(&byte) = rest.first() {
        let (escaped, length): (&[u8], _) = match rest {
            [b'<', ..] => (b"\\u003c", 1),
            [b'>', ..] => (b"\\u003e", 1),
            [b'&', ..] => (b"\\u0026", 1),
            [0xe2, 0x80, 0xa8, ..] => (b"\\u2028", 3),
            [0xe2, 0x80, 0xa9, ..] => (b"\\u2029", 3),
            _ => (&[byte], 1),
        };
        out.extend_from_slice(escaped);
        rest = &rest[length..];
    }
    out
}

fn write_one<T: Serialize + ?Sized>(
    field: &'static Field,
    out: &mut Vec<u8>,
    value: &T,
) -> Result<(), Error> {
    if field.kind != Kind::Raw {
        return value.serialize(ValueWriter {
            field,
            out,
            one: true,
        });
    }
    let json = serde_json::to_vec(value).map_err(|e| Error::Value {
        field: field.json,
        why: e.to_string(),
    })?;
    let json = escape(&json);
    if json != b"null" {
        let mut inner = Vec::with_capacity(json.len() + 4);
        put_bytes(&mut inner, 1, &json);
        put_bytes(out, field.number, &inner);
    }
    Ok(())
}

impl SerializeStruct for FieldsWriter<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.write(name, value)
    }

    fn end(self) -> Result<(), Error> {
        self.finish();
        Ok(())
    }
}

impl SerializeMap for FieldsWriter<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.key = key.serialize(Text)?;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let key = std::mem::take(&mut self.key);
        self.write(&key, value)
    }

    fn end(self) -> Result<(), Error> {
        self.finish();
        Ok(())
    }
}

impl<'a> Serializer for MessageWriter<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Impossible<(), Error>;
    type SerializeMap = FieldsWriter<'a>;
    type SerializeStruct = FieldsWriter<'a>;

    refused_shapes!();
    refused!(
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_f32(f32),
        serialize_f64(f64),
        serialize_char(char),
        serialize_str(&str),
        serialize_bytes(&[u8])
    );

    fn serialize_none(self) -> Result<(), Error> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Error> {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Error> {
        self.refuse("a variant")
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, Error> {
        self.refuse("a list")
    }
    fn serialize_map(self, _: Option<usize>) -> Result<FieldsWriter<'a>, Error> {
        Ok(self.begin())
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<FieldsWriter<'a>, Error> {
        Ok(self.begin())
    }
}

/// A field with its tag, as often as it has items.
struct ValueWriter<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
    /// It is one item.
    one: bool,
}

impl<'a> ValueWriter<'a> {
    fn refuse<T>(&self, what: &str) -> Result<T, Error> {
        Err(Error::Value {
            field: self.field.json,
            why: format!("{what} is not what it holds"),
        })
    }

    fn number(self, value: u64) -> Result<(), Error> {
        match self.field.kind {
            Kind::Int => {
                put_tag(self.out, self.field.number, VARINT);
                put_varint(self.out, value);
                Ok(())
            }
            Kind::IntOrString => {
                let mut inner = Vec::with_capacity(12);
                put_tag(&mut inner, 1, VARINT);
                put_varint(&mut inner, 0);
                put_tag(&mut inner, 2, VARINT);
                put_varint(&mut inner, value);
                put_bytes(self.out, self.field.number, &inner);
                Ok(())
            }
            _ => self.refuse("a number"),
        }
    }

    fn collection(self) -> Collection<'a> {
        Collection {
            field: self.field,
            out: self.out,
            inner: self.one.then(Vec::new),
        }
    }
}

impl<'a> Serializer for ValueWriter<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Collection<'a>;
    type SerializeMap = MapWriter<'a>;
    type SerializeStruct = MapWriter<'a>;

    refused_shapes!();
    refused!(
        serialize_f32(f32),
        serialize_f64(f64),
        serialize_char(char),
        serialize_bytes(&[u8])
    );

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        match self.field.kind {
            Kind::Bool => {
                put_tag(self.out, self.field.number, VARINT);
                self.out.push(u8::from(value));
                Ok(())
            }
            _ => self.refuse("true or false"),
        }
    }
    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.number(i64::from(value).cast_unsigned())
    }
    fn serialize_i16(self, value: i16) -> Result<(), Error> {
        self.number(i64::from(value).cast_unsigned())
    }
    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.number(i64::from(value).cast_unsigned())
    }
    fn serialize_i64(self, value: i64) -> Result<(), Error> {
        self.number(value.cast_unsigned())
    }
    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.number(value.into())
    }
    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.number(value.into())
    }
    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.number(value.into())
    }
    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.number(value)
    }
    fn serialize_str(self, value: &str) -> Result<(), Error> {
        let (number, name) = (self.field.number, self.field.json);
        match self.field.kind {
            Kind::String => put_bytes(self.out, number, value.as_bytes()),
            Kind::Bytes => {
                let bytes = STANDARD.decode(value).map_err(|e| Error::Value {
                    field: name,
                    why: e.to_string(),
                })?;
                put_bytes(self.out, number, &bytes);
            }
            Kind::Quantity => {
                let mut inner = Vec::with_capacity(value.len() + 2);
                put_bytes(&mut inner, 1, value.as_bytes());
                put_bytes(self.out, number, &inner);
            }
            Kind::Time | Kind::MicroTime => time::write(self.out, number, value)?,
            Kind::IntOrString => {
                let mut inner = Vec::with_capacity(value.len() + 4);
                put_tag(&mut inner, 1, VARINT);
                put_varint(&mut inner, 1);
                put_bytes(&mut inner, 3, value.as_bytes());
                put_bytes(self.out, number, &inner);
            }
            _ => return self.refuse("a string"),
        }
        Ok(())
    }
    fn serialize_none(self) -> Result<(), Error> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Error> {
        Ok(())
    }
    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
    ) -> Result<(), Error> {
        self.serialize_str(name)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Collection<'a>, Error> {
        match (self.one, self.field.rule, self.field.kind) {
            (false, Rule::List, _) | (true, _, Kind::Strings) => Ok(self.collection()),
            _ => self.refuse("a list"),
        }
    }
    fn serialize_map(self, _: Option<usize>) -> Result<MapWriter<'a>, Error> {
        MapWriter::new(self)
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<MapWriter<'a>, Error> {
        MapWriter::new(self)
    }
}

/// The items of a list.
struct Collection<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
    /// Of a list that is one value: what it holds so far.
    inner: Option<Vec<u8>>,
}

impl SerializeSeq for Collection<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        match &mut self.inner {
            Some(inner) => {
                put_bytes(inner, 1, value.serialize(Text)?.as_bytes());
                Ok(())
            }
            None => write_one(self.field, self.out, value),
        }
    }

    fn end(self) -> Result<(), Error> {
        if let Some(inner) = self.inner {
            put_bytes(self.out, self.field.number, &inner);
        }
        Ok(())
    }
}

/// What is a map in serde: an object, or a map from strings.
enum MapWriter<'a> {
    Object(FieldsWriter<'a>),
    Entries {
        field: &'static Field,
        out: &'a mut Vec<u8>,
        key: String,
    },
}

impl<'a> MapWriter<'a> {
    fn new(value: ValueWriter<'a>) -> Result<Self, Error> {
        let field = value.field;
        match (value.one, field.rule, field.kind) {
            (false, Rule::Map, _) => Ok(Self::Entries {
                field,
                out: value.out,
                key: String::new(),
            }),
            (true, _, Kind::Message(index)) => Ok(Self::Object(FieldsWriter {
                message: at_index(index),
                number: Some(field.number),
                to: value.out,
                out: Vec::with_capacity(64),
                key: String::new(),
                inlined: Vec::new(),
            })),
            _ => value.refuse("an object"),
        }
    }
}

impl SerializeMap for MapWriter<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        match self {
            Self::Object(fields) => fields.serialize_key(key),
            Self::Entries { key: to, .. } => {
                *to = key.serialize(Text)?;
                Ok(())
            }
        }
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        match self {
            Self::Object(fields) => fields.serialize_value(value),
            Self::Entries { field, out, key } => {
                let mut entry = Vec::with_capacity(key.len() + 32);
                put_bytes(&mut entry, 1, key.as_bytes());
                // The value stands in the entry's second field, whatever its own number.
                let mut item = Vec::new();
                write_one(field, &mut item, value)?;
                entry.extend_from_slice(&renumbered(&item)?);
                put_bytes(out, field.number, &entry);
                Ok(())
            }
        }
    }

    fn end(self) -> Result<(), Error> {
        if let Self::Object(fields) = self {
            fields.finish();
        }
        Ok(())
    }
}

/// The same value with the number that values of a map's entries have.
fn renumbered(item: &[u8]) -> Result<Vec<u8>, Error> {
    let mut reader = Reader(item);
    if reader.is_empty() {
        return Ok(Vec::new());
    }
    let (_, wire) = reader.tag()?;
    let mut out = Vec::with_capacity(item.len());
    put_tag(&mut out, 2, wire);
    out.extend_from_slice(reader.0);
    Ok(out)
}

impl SerializeStruct for MapWriter<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        match self {
            Self::Object(fields) => fields.write(name, value),
            Self::Entries { field, .. } => Err(Error::Unknown {
                message: field.json,
                field: name.to_owned(),
            }),
        }
    }

    fn end(self) -> Result<(), Error> {
        SerializeMap::end(self)
    }
}
