//! A serde format that reads a message and names its fields as JSON does.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::schema::{Field, Kind, Message, Rule, at_index};
use crate::wire::{BYTES, Reader, VARINT};
use crate::{Error, View, time};

/// The zero time stands for `null` in fields that k8s-openapi demands; in others it is left out.
const DEMANDED_TIMES: [&str; 2] = ["lastTransitionTime", "lastObservedTime"];

/// Reads an object; `bytes` is its message without envelope. `managed_fields`: with them.
///
/// # Errors
/// The bytes are not that message, or the type says no.
pub fn from_slice<'de, T: Deserialize<'de>>(
    message: &'static Message,
    bytes: &'de [u8],
    managed_fields: bool,
) -> Result<T, Error> {
    let view = match managed_fields {
        true => View::whole(),
        false => View::without_managed_fields(),
    };
    from_slice_as(message, bytes, view)
}

/// Reads of an object what `view` has.
///
/// # Errors
/// As [`from_slice`].
pub fn from_slice_as<'de, T: Deserialize<'de>>(
    message: &'static Message,
    bytes: &'de [u8],
    view: &'static View,
) -> Result<T, Error> {
    T::deserialize(Whole(Fields::new(message, bytes, view)))
}

/// A message as a value.
struct Whole<'de>(Fields<'de>);

impl<'de> Deserializer<'de> for Whole<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct enum identifier
    }
}

/// One message, or one whose fields stand in another's place.
struct Level<'de> {
    message: &'static Message,
    reader: Reader<'de>,
    /// Where the next field is likely to stand in the table.
    hint: usize,
    /// Lists and maps that were read, by number.
    seen: u128,
    /// Fields that are stepped over, by place.
    skipped: u128,
}

/// The fields of a message, one after the other.
struct Fields<'de> {
    level: Level<'de>,
    /// Around it, while the fields of an inlined one are read.
    outer: Vec<Level<'de>>,
    /// Whose value comes next.
    current: Option<(&'static Field, u8)>,
    view: &'static View,
}

impl<'de> Fields<'de> {
    fn new(message: &'static Message, bytes: &'de [u8], view: &'static View) -> Self {
        Self {
            level: Level {
                message,
                reader: Reader(bytes),
                hint: 0,
                seen: 0,
                skipped: view.of(message),
            },
            outer: Vec::new(),
            current: None,
            view,
        }
    }

    fn next(&mut self) -> Result<Option<&'static Field>, Error> {
        loop {
            if self.level.reader.is_empty() {
                match self.outer.pop() {
                    Some(level) => self.level = level,
                    None => return Ok(None),
                }
                continue;
            }
            let level = &mut self.level;
            let (number, wire) = level.reader.tag()?;
            let Some(at) = level.message.by_number(number, level.hint) else {
                // Of a newer version.
                level.reader.skip(number, wire)?;
                continue;
            };
            level.hint = at + 1;
            if level.skipped >> at & 1 != 0 {
                level.reader.skip(number, wire)?;
                continue;
            }
            let field = &level.message.fields[at];
            if wire != expected_wire(field) {
                return Err(Error::WireType {
                    message: level.message.name,
                    field: field.json,
                    wire,
                });
            }
            if field.inline
                && let Kind::Message(index) = field.kind
            {
                let bytes = level.reader.bytes()?;
                let inner = Fields::new(at_index(index), bytes, self.view).level;
                let outer = std::mem::replace(&mut self.level, inner);
                self.outer.push(outer);
                continue;
            }
            match field.rule {
                Rule::One => {
                    if is_left_out(field, level.reader)? {
                        level.reader.skip(number, wire)?;
                        continue;
                    }
                }
                Rule::List | Rule::Map => {
                    let bit = 1_u128.checked_shl(number).unwrap_or_default();
                    if level.seen & bit != 0 {
                        return Err(Error::Scattered {
                            message: level.message.name,
                            field: field.json,
                        });
                    }
                    level.seen |= bit;
                }
            }
            self.current = Some((field, wire));
            return Ok(Some(field));
        }
    }
}

fn expected_wire(field: &Field) -> u8 {
    match (field.rule, field.kind) {
        (Rule::Map, _) => BYTES,
        (_, Kind::Int | Kind::Bool) => VARINT,
        _ => BYTES,
    }
}

/// Whether JSON has no such field for that value, which comes next.
fn is_left_out(field: &Field, mut reader: Reader<'_>) -> Result<bool, Error> {
    Ok(match field.kind {
        Kind::Time | Kind::MicroTime => {
            reader.bytes()?.is_empty() && !DEMANDED_TIMES.contains(&field.json)
        }
        _ if !field.omit_zero => false,
        Kind::Int | Kind::Bool => reader.varint()? == 0,
        Kind::String | Kind::Bytes => reader.bytes()?.is_empty(),
        _ => false,
    })
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        match self.next()? {
            Some(field) => seed
                .deserialize(BorrowedStrDeserializer::new(field.json))
                .map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (field, wire) = self.current.take().ok_or(Error::End)?;
        let view = self.view;
        let reader = &mut self.level.reader;
        match field.rule {
            Rule::One => seed.deserialize(Item {
                reader,
                field,
                view,
            }),
            Rule::List | Rule::Map => seed.deserialize(Items {
                reader,
                field,
                wire,
                first: true,
                view,
            }),
        }
    }
}

/// One value: its tag is read.
struct Item<'a, 'de> {
    reader: &'a mut Reader<'de>,
    field: &'static Field,
    view: &'static View,
}

impl<'de> Item<'_, 'de> {
    fn text(&mut self) -> Result<&'de str, Error> {
        let bytes = self.reader.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| Error::Utf8(self.field.json))
    }

    /// The field of a message that is one value.
    fn only(&mut self, number: u32) -> Result<&'de [u8], Error> {
        let mut inner = Reader(self.reader.bytes()?);
        let mut found: &[u8] = &[];
        while !inner.is_empty() {
            match inner.tag()? {
                (n, BYTES) if n == number => found = inner.bytes()?,
                (n, wire) => inner.skip(n, wire)?,
            }
        }
        Ok(found)
    }

    fn int_or_string<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = Reader(self.reader.bytes()?);
        let (mut is_text, mut number, mut text) = (false, 0_i64, "");
        while !inner.is_empty() {
            match inner.tag()? {
                (1, VARINT) => is_text = inner.varint()? == 1,
                (2, VARINT) => number = inner.varint()?.cast_signed(),
                (3, BYTES) => {
                    let bytes = inner.bytes()?;
                    text = std::str::from_utf8(bytes).map_err(|_| Error::Utf8(self.field.json))?;
                }
                (n, wire) => inner.skip(n, wire)?,
            }
        }
        match is_text {
            true => visitor.visit_borrowed_str(text),
            false => visitor.visit_i64(number),
        }
    }

    fn raw<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        let json = self.only(1)?;
        if json.is_empty() {
            return visitor.visit_unit();
        }
        let value: serde_json::Value =
            serde_json::from_slice(json).map_err(|e| self.wrong(e.to_string()))?;
        value
            .deserialize_any(visitor)
            .map_err(|e| self.wrong(e.to_string()))
    }

    fn wrong(&self, why: String) -> Error {
        Error::Value {
            field: self.field.json,
            why,
        }
    }
}

impl<'de> Deserializer<'de> for Item<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
        match self.field.kind {
            Kind::String => visitor.visit_borrowed_str(self.text()?),
            Kind::Bytes => visitor.visit_string(STANDARD.encode(self.reader.bytes()?)),
            Kind::Int => visitor.visit_i64(self.reader.varint()?.cast_signed()),
            Kind::Bool => visitor.visit_bool(self.reader.varint()? != 0),
            Kind::Quantity => {
                let bytes = self.only(1)?;
                let text = std::str::from_utf8(bytes).map_err(|_| Error::Utf8(self.field.json))?;
                visitor.visit_borrowed_str(if text.is_empty() { "0" } else { text })
            }
            Kind::Time => visitor.visit_string(time::read(self.reader.bytes()?, false)?),
            Kind::MicroTime => visitor.visit_string(time::read(self.reader.bytes()?, true)?),
            Kind::IntOrString => self.int_or_string(visitor),
            Kind::Raw => self.raw(visitor),
            Kind::Strings => visitor.visit_seq(Strings {
                reader: Reader(self.reader.bytes()?),
                field: self.field.json,
            }),
            Kind::Message(index) => {
                let bytes = self.reader.bytes()?;
                visitor.visit_map(Fields::new(at_index(index), bytes, self.view))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.field.kind {
            // It is a choice of two in JSON.
            Kind::IntOrString => self.deserialize_any(visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.field.kind {
            Kind::String => visitor.visit_enum(BorrowedStrDeserializer::new(self.text()?)),
            _ => Err(self.wrong("no choice of names".to_owned())),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.reader
            .skip(self.field.number, expected_wire(self.field))?;
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier
    }
}

/// A list or map, whose items stand side by side; the tag of the first is read.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    field: &'static Field,
    wire: u8,
    first: bool,
    view: &'static View,
}

impl<'de> Items<'_, 'de> {
    /// Whether another item follows; its tag is read then.
    fn follows(&mut self) -> Result<bool, Error> {
        if std::mem::take(&mut self.first) {
            return Ok(true);
        }
        let mut ahead = *self.reader;
        if ahead.is_empty() || ahead.tag()? != (self.field.number, self.wire) {
            return Ok(false);
        }
        *self.reader = ahead;
        Ok(true)
    }

    /// How many are left, so that a list takes the room that it needs and no more. `None`: the bytes are broken.
    fn count(&self) -> Option<usize> {
        let mut ahead = *self.reader;
        let mut count = 0;
        if self.first {
            ahead.skip(self.field.number, self.wire).ok()?;
            count = 1;
        }
        while !ahead.is_empty() && ahead.tag().ok()? == (self.field.number, self.wire) {
            ahead.skip(self.field.number, self.wire).ok()?;
            count += 1;
        }
        Some(count)
    }
}

impl<'de> Deserializer<'de> for Items<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
        match self.field.rule {
            Rule::Map => visitor.visit_map(Entries {
                items: self,
                value: None,
            }),
            _ => {
                let read = visitor.visit_seq(&mut self)?;
                // Whoever stopped early would leave the rest for somebody else.
                match self.follows()? {
                    true => Err(Error::Value {
                        field: self.field.json,
                        why: "too many items".to_owned(),
                    }),
                    false => Ok(read),
                }
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
        while self.follows()? {
            self.reader.skip(self.field.number, self.wire)?;
        }
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct enum identifier
    }
}

impl<'de> SeqAccess<'de> for &mut Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if !self.follows()? {
            return Ok(None);
        }
        let item = Item {
            reader: self.reader,
            field: self.field,
            view: self.view,
        };
        seed.deserialize(item).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        self.count()
    }
}

/// The entries of a map: messages of key and value.
struct Entries<'a, 'de> {
    items: Items<'a, 'de>,
    /// The bytes that the value begins with; `None`: it is zero.
    value: Option<Reader<'de>>,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if !self.items.follows()? {
            return Ok(None);
        }
        let mut entry = Reader(self.items.reader.bytes()?);
        let mut key: &[u8] = &[];
        self.value = None;
        while !entry.is_empty() {
            match entry.tag()? {
                (1, BYTES) => key = entry.bytes()?,
                (2, wire) => {
                    self.value = Some(entry);
                    entry.skip(2, wire)?;
                }
                (number, wire) => entry.skip(number, wire)?,
            }
        }
        let key = std::str::from_utf8(key).map_err(|_| Error::Utf8(self.items.field.json))?;
        seed.deserialize(BorrowedStrDeserializer::new(key))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        // A length of zero is a zero value of every kind that maps have.
        let mut value = self.value.take().unwrap_or(Reader(&[0]));
        seed.deserialize(Item {
            reader: &mut value,
            field: self.items.field,
            view: self.items.view,
        })
    }
}

/// The items of a list that is a message.
struct Strings<'de> {
    reader: Reader<'de>,
    field: &'static str,
}

impl<'de> SeqAccess<'de> for Strings<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        while !self.reader.is_empty() {
            match self.reader.tag()? {
                (1, BYTES) => {
                    let bytes = self.reader.bytes()?;
                    let text = std::str::from_utf8(bytes).map_err(|_| Error::Utf8(self.field))?;
                    let text: StrDeserializer<'_, Error> = text.into_deserializer();
                    return seed.deserialize(text).map(Some);
                }
                (number, wire) => self.reader.skip(number, wire)?,
            }
        }
        Ok(None)
    }
}
