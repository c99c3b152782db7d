//! Configuration: strict, and refused with the path and the cure.

use crate::Refusal;
use crate::prelude::*;
use alloc::borrow::Cow;
use core::fmt;
use serde::{
    Deserialize,
    de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor},
};

/// Reads a plugin's configuration: JSON text, which is what a mesh hands over and what plain Envoy does with a
/// `StringValue`; or a `google.protobuf.Struct`, which plain Envoy hands over as the message's bytes. Nothing at all is
/// an empty object, since a mesh sends an empty string for a plugin without configuration.
///
/// serde_json reads the text into a tree, and the type is made from that. So a refusal knows its path, an array is
/// never taken for an object, a key never stands twice, and no refusal repeats a value, which may be a secret. And the
/// module is smaller: serde_json's own errors can print floating-point numbers, which alone is 20 KB.
pub fn parse<C: DeserializeOwned>(text: &[u8]) -> Result<C, Refusal> {
    let tree = if text.trim_ascii().is_empty() { Tree::Object(Vec::new()) } else { read(text)? };
    C::deserialize(&tree).map_err(|wrong| wrong.0)
}

/// A refusal on its way out.
#[derive(Debug)]
struct Wrong(Refusal);

impl Wrong {
    #[cold]
    #[inline(never)]
    fn at(field: &str, problem: &str) -> Self {
        Self(Refusal::at(field, problem))
    }

    #[cold]
    #[inline(never)]
    fn within(self, field: &str) -> Self {
        Self(self.0.within(field))
    }

    #[cold]
    #[inline(never)]
    fn within_item(self, index: usize) -> Self {
        Self(self.0.within_item(index))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core::error::Error for Wrong {}

fn read(text: &[u8]) -> Result<Tree, Refusal> {
    // Never both: a message holds bytes that JSON does not.
    serde_json::from_slice(text).or_else(|error| {
        protobuf::read_struct(text).ok_or_else(|| {
            let example = "give an object such as {\"field\": \"value\"}";
            Refusal::at("", &format!("is not JSON ({error}), {example}"))
        })
    })
}

/// `google.protobuf.Struct` in the wire format: just enough of it, as a library for all of protobuf would be larger than
/// the rest of a module.
mod protobuf {
    use super::Tree;
    use crate::prelude::*;

    /// As deep as serde_json goes.
    const DEPTH: u32 = 128;

    /// Fields of a message: their number, and their content (fixed64 and length-delimited as bytes, varint as a number).
    struct Fields<'a>(&'a [u8]);

    enum Content<'a> {
        Number(u64),
        Bytes(&'a [u8]),
    }

    impl<'a> Fields<'a> {
        fn varint(&mut self) -> Option<u64> {
            let mut value = 0;
            for shift in (0..64).step_by(7) {
                let (byte, rest) = self.0.split_first()?;
                self.0 = rest;
                value |= u64::from(byte & 0x7f).checked_shl(shift)?;
                if *byte < 0x80 {
                    return Some(value);
                }
            }
            None
        }

        fn take(&mut self, length: u64) -> Option<&'a [u8]> {
            let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
            self.0 = rest;
            Some(taken)
        }

        /// The next field; `Some(None)` at the end, `None` where it is no message.
        fn next(&mut self) -> Option<Option<(u64, Content<'a>)>> {
            if self.0.is_empty() {
                return Some(None);
            }
            let tag = self.varint()?;
            let content = match tag & 7 {
                0 => Content::Number(self.varint()?),
                1 => Content::Bytes(self.take(8)?),
                2 => {
                    let length = self.varint()?;
                    Content::Bytes(self.take(length)?)
                }
                _ => return None,
            };
            Some(Some((tag >> 3, content)))
        }
    }

    /// `Struct`: field 1, repeated, is an entry of key (1) and value (2).
    pub(super) fn read_struct(message: &[u8]) -> Option<Tree> {
        object(message, DEPTH)
    }

    fn object(message: &[u8], depth: u32) -> Option<Tree> {
        let mut fields = Fields(message);
        let mut pairs: Vec<(String, Tree)> = Vec::new();
        while let Some(field) = fields.next()? {
            let (1, Content::Bytes(entry)) = field else { return None };
            let (mut key, mut item) = (None, None);
            let mut parts = Fields(entry);
            while let Some(part) = parts.next()? {
                match part {
                    (1, Content::Bytes(text)) => key = Some(str::from_utf8(text).ok()?),
                    (2, Content::Bytes(message)) => item = Some(value(message, depth.checked_sub(1)?)?),
                    _ => return None,
                }
            }
            pairs.push((key?.into(), item?));
        }
        Some(Tree::Object(pairs))
    }

    /// `Value`: one of null (1), number (2), string (3), bool (4), struct (5), list (6).
    fn value(message: &[u8], depth: u32) -> Option<Tree> {
        let mut fields = Fields(message);
        let tree = match fields.next()?? {
            (1, Content::Number(_)) => Tree::Null,
            (2, Content::Bytes(number)) => Tree::number(f64::from_le_bytes(*number.first_chunk()?)),
            (3, Content::Bytes(text)) => Tree::Text(str::from_utf8(text).ok()?.into()),
            (4, Content::Number(truth)) => Tree::Bool(truth != 0),
            (5, Content::Bytes(message)) => object(message, depth)?,
            (6, Content::Bytes(message)) => {
                let mut items = Vec::new();
                let mut list = Fields(message);
                while let Some(item) = list.next()? {
                    match item {
                        (1, Content::Bytes(message)) => items.push(value(message, depth.checked_sub(1)?)?),
                        _ => return None,
                    }
                }
                Tree::List(items)
            }
            _ => return None,
        };
        fields.0.is_empty().then_some(tree)
    }
}

/// A JSON text, read.
enum Tree {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Tree;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Unsigned(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Signed(value))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::number(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Text(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut pairs: Vec<(String, Tree)> = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Tree::Object(pairs))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserializer<'de> for &'de Tree {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self {
            Tree::Null => visitor.visit_unit(),
            Tree::Bool(value) => visitor.visit_bool(*value),
            Tree::Unsigned(value) => visitor.visit_u64(*value),
            Tree::Signed(value) => visitor.visit_i64(*value),
            Tree::Float(value) => visitor.visit_f64(*value),
            Tree::Text(value) => visitor.visit_str(value),
            Tree::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Tree::Object(pairs) => visitor.visit_map(Fields { pairs, at: 0 }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self {
            Tree::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    /// A derived type would take a list for its fields in order; an operator never means that.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self {
            Tree::Object(pairs) => visitor.visit_map(Fields { pairs, at: 0 }),
            _ => Err(de::Error::invalid_type(self.kind(), &"an object")),
        }
    }

    /// One of several names; a name with a value, `{"name": …}`, is no form of ours.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self {
            Tree::Text(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            _ => Err(de::Error::invalid_type(self.kind(), &OneOf(names))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

impl Tree {
    /// A number without a fraction is a whole one, however it was written: `6e2`, or any number of a Struct.
    #[allow(clippy::as_conversions)] // Casts from float saturate, and one that changed the number is not taken.
    fn number(value: f64) -> Self {
        let whole = value as i64;
        if whole as f64 != value || whole == i64::MAX {
            return Tree::Float(value);
        }
        u64::try_from(whole).map_or(Tree::Signed(whole), Tree::Unsigned)
    }

    fn kind(&self) -> de::Unexpected<'_> {
        match self {
            Tree::Null => de::Unexpected::Unit,
            Tree::Bool(value) => de::Unexpected::Bool(*value),
            Tree::Unsigned(value) => de::Unexpected::Unsigned(*value),
            Tree::Signed(value) => de::Unexpected::Signed(*value),
            Tree::Float(value) => de::Unexpected::Float(*value),
            Tree::Text(value) => de::Unexpected::Str(value),
            Tree::List(_) => de::Unexpected::Seq,
            Tree::Object(_) => de::Unexpected::Map,
        }
    }
}

struct OneOf(&'static [&'static str]);

impl de::Expected for OneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of {}", self.0.join(", "))
    }
}

struct Items<'de> {
    items: core::iter::Enumerate<core::slice::Iter<'de, Tree>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Wrong;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Wrong> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(item).map(Some).map_err(|wrong| wrong.within_item(index))
    }
}

/// Reads a type whose every field may be left out: `fields!(Config { first, second });`, all of them, which the compiler
/// sees to. It does what serde's derive with `default` and `deny_unknown_fields` does, in about half the code, as values
/// are put in place of the default ones: derived, each field waits in a variable of its own, each way out drops them
/// all, and each looks once more for a field that stands twice, which [`parse`] refuses by itself.
#[macro_export]
macro_rules! fields {
    ($type:ident { $($field:ident),+ $(,)? }) => {
        impl<'de> $crate::serde::Deserialize<'de> for $type {
            fn deserialize<D: $crate::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[allow(non_camel_case_types)]
                #[derive(Clone, Copy)]
                enum Field { $($field),+ }
                const FIELDS: &[Field] = &[$(Field::$field),+];
                const NAMES: &[&str] = &[$(stringify!($field)),+];
                struct Reader;
                impl<'de> $crate::serde::de::Visitor<'de> for Reader {
                    type Value = $type;
                    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: $crate::serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$type, A::Error> {
                        let mut read = <$type>::default();
                        let $type { $($field),+ } = &mut read;
                        while let Some(index) = map.next_key_seed($crate::config::Known(NAMES))? {
                            match FIELDS.get(index) {
                                $(Some(Field::$field) => map.next_value_seed($crate::config::Place($field))?,)+
                                None => {}
                            }
                        }
                        Ok(read)
                    }
                }
                deserializer.deserialize_struct(stringify!($type), NAMES, Reader)
            }
        }
    };
}

/// One of the names of fields, as its place among them. For [`fields!`](crate::fields).
#[derive(Clone, Copy, Debug)]
pub struct Known(pub &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Known {
    type Value = usize;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Known {
    type Value = usize;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field")
    }
    fn visit_str<E: de::Error>(self, name: &str) -> Result<usize, E> {
        self.0.iter().position(|known| *known == name).ok_or_else(|| E::unknown_field(name, self.0))
    }
}

/// A value that is read in place of another. For [`fields!`](crate::fields).
#[derive(Debug)]
pub struct Place<'a, T>(pub &'a mut T);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Place<'_, T> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.0 = T::deserialize(deserializer)?;
        Ok(())
    }
}

struct Fields<'de> {
    pairs: &'de [(String, Tree)],
    at: usize,
}

impl<'de> Fields<'de> {
    #[inline(never)]
    fn key(&self) -> Result<Option<&'de str>, Wrong> {
        let Some((key, _)) = self.pairs.get(self.at) else { return Ok(None) };
        if self.pairs.iter().take(self.at).any(|(earlier, _)| earlier == key) {
            return Err(Wrong::at(key, "stands there twice, take one out"));
        }
        Ok(Some(key))
    }

    #[inline(never)]
    fn pair(&mut self) -> Result<&'de (String, Tree), Wrong> {
        let pair = self.pairs.get(self.at).ok_or_else(|| Wrong::at("", "a value without a key"))?;
        self.at = self.at.saturating_add(1);
        Ok(pair)
    }
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Wrong;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Wrong> {
        let Some(key) = self.key()? else { return Ok(None) };
        seed.deserialize(key.into_deserializer()).map(Some).map_err(|wrong: Wrong| wrong.within(key))
    }
    // Once for each type, and not once for each field.
    #[inline(never)]
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Wrong> {
        let (key, value) = self.pair()?;
        seed.deserialize(value).map_err(|wrong| wrong.within(key))
    }
}

/// What serde's types say of a value. None of it repeats the value.
impl de::Error for Wrong {
    #[cold]
    fn custom<T: fmt::Display>(problem: T) -> Self {
        Wrong::at("", &problem.to_string())
    }
    #[cold]
    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            de::Unexpected::Bool(_) => "a truth value",
            de::Unexpected::Unsigned(_) | de::Unexpected::Signed(_) => "a whole number",
            de::Unexpected::Float(_) => "a number with a fraction",
            de::Unexpected::Str(_) => "a text",
            de::Unexpected::Unit => "null",
            de::Unexpected::Seq => "a list",
            de::Unexpected::Map => "an object",
            _ => "something else",
        };
        Wrong::at("", &format!("is {found}, give {}", plain(expected)))
    }
    #[cold]
    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Wrong::at("", &format!("is out of range, give {}", plain(expected)))
    }
    #[cold]
    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Wrong::at("", &format!("is no field, give one of {}", known.join(", ")))
    }
    #[cold]
    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
        Wrong::at("", &format!("is not known, give one of {}", known.join(", ")))
    }
    #[cold]
    fn missing_field(field: &'static str) -> Self {
        Wrong::at(field, "is missing")
    }
}

/// What serde's own types expect, in an operator's words.
fn plain(expected: &dyn de::Expected) -> String {
    let expected = expected.to_string();
    match expected.as_str() {
        "i64" | "u64" => "a whole number".into(),
        "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a string" => "a text".into(),
        _ => expected,
    }
}

/// A share from 0 to 1, both included.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema, serde::Serialize), schemars(inline))]
pub struct Ratio(#[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 1.0)))] f64);

impl Ratio {
    /// All of it.
    pub const ALL: Self = Self(1.0);

    /// The share, 0.0 to 1.0.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        if (0.0..=1.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(de::Error::custom("is out of range, give a number from 0 to 1"))
        }
    }
}

/// A whole number within bounds, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(serde::Serialize))]
pub struct Bounded<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Bounded<MIN, MAX> {
    /// `None` out of bounds.
    pub const fn new(value: u32) -> Option<Self> {
        if value >= MIN && value <= MAX { Some(Self(value)) } else { None }
    }

    /// The smallest.
    pub const LEAST: Self = Self(MIN);

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Every u32 is an f64, and what is beyond is only out of range.
        let value = f64::deserialize(deserializer)?;
        let number = match Tree::number(value) {
            Tree::Unsigned(value) => u32::try_from(value).ok(),
            Tree::Float(value) if value.abs() < 9e15 => {
                return Err(de::Error::invalid_type(de::Unexpected::Float(value), &"a whole number"));
            }
            _ => None,
        };
        number
            .and_then(Self::new)
            .ok_or_else(|| de::Error::custom(format_args!("is out of range, give a whole number from {MIN} to {MAX}")))
    }
}

#[cfg(feature = "schema")]
impl<const MIN: u32, const MAX: u32> schemars::JsonSchema for Bounded<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Integer{MIN}To{MAX}").into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// A span of time: a whole number and one of `ms`, `s`, `m`, `h`, such as `"250ms"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration {
    ms: u64,
}

impl Duration {
    /// So many milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms }
    }

    /// In milliseconds.
    pub const fn ms(self) -> u64 {
        self.ms
    }

    fn read(text: &str) -> Option<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits)?;
        let unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        Some(Self { ms: number.parse::<u64>().ok()?.checked_mul(unit)? })
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"250ms\", \"10s\", \"5m\" or \"1h\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                Duration::read(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// For the default values in a schema.
#[cfg(feature = "schema")]
impl serde::Serialize for Duration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole =
            [("h", 3_600_000), ("m", 60_000), ("s", 1_000)].into_iter().find(|(_, ms)| self.ms.is_multiple_of(*ms));
        let (unit, ms) = whole.unwrap_or(("ms", 1));
        serializer.collect_str(&format_args!("{}{unit}", self.ms.checked_div(ms).unwrap_or(0)))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" })
    }
}

/// The name of a header, in lower case. Pseudo headers are not taken, nor those that a connection lives by.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(serde::Serialize))]
pub struct HeaderName(Cow<'static, str>);

impl HeaderName {
    /// Headers that say how a message is framed and encoded, and where it goes (RFC 9110, 6.6.2, 7.2, 7.6.1, 8.4, 8.6): a
    /// filter that wrote one would break the message or the connection.
    const OF_THE_PROXY: [&'static str; 10] = [
        "connection",
        "content-encoding",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];

    /// `x-request-id`, which the proxy gives every request unless told not to.
    pub const REQUEST_ID: Self = Self(Cow::Borrowed("x-request-id"));

    /// The name, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a name.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn read(name: &str) -> Result<Self, &'static str> {
        let name = name.to_ascii_lowercase();
        // RFC 9110 5.6.2: token.
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(token) {
            return Err("is no header name, give 1 to 64 letters, digits or `-`, without `:`");
        }
        if Self::OF_THE_PROXY.contains(&name.as_str()) {
            return Err("is a header that the proxy itself lives by, give another");
        }
        Ok(Self(name.into()))
    }
}

impl<'de> Deserialize<'de> for HeaderName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for HeaderName {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "HeaderName".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let either = |c: char| format!("[{}{c}]", c.to_ascii_uppercase());
        let either = |name: &&str| name.chars().map(|c| if c == '-' { "-".into() } else { either(c) }).collect();
        let names = Self::OF_THE_PROXY.iter().map(either).collect::<Vec<String>>().join("|");
        let names = format!("^({names})$");
        schemars::json_schema!({
            "type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$", "not": { "pattern": names }
        })
    }
}

#[cfg(test)]
#[allow(clippy::as_conversions, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[allow(dead_code)]
    struct Outer {
        name: String,
        inner: Inner,
        list: Vec<Choice>,
        more: Vec<Inner>,
    }
    impl Default for Outer {
        fn default() -> Self {
            Self { name: "none".into(), inner: Inner::default(), list: Vec::new(), more: Vec::new() }
        }
    }
    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[allow(dead_code)]
    struct Inner {
        on: bool,
        share: Option<Ratio>,
        count: Option<Bounded<2, 9>>,
        wait: Option<Duration>,
        header: Option<HeaderName>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Choice {
        Up,
        Down,
    }

    #[test]
    fn a_refusal_says_where_and_what_would_be_right() {
        for (text, path, problem) in [
            (r#"{"nane": "x"}"#, "nane", "is no field, give one of name, inner, list, more"),
            (r#"{"name": 5, "list": []}"#, "name", "is a whole number, give a text"),
            (r#"{"list": ["up", "down", "left"], "name": "x"}"#, "list[2]", "is not known, give one of up, down"),
            (r#"{"list": ["up", 7]}"#, "list[1]", "is a whole number, give one of up, down"),
            (r#"{"list": {"up": 7}}"#, "list", "is an object, give a list"),
            (r#"{"inner": {"share": 1.5}, "name": "x"}"#, "inner.share", "is out of range, give a number from 0 to 1"),
            (r#"{"inner": {"share": "0.5"}}"#, "inner.share", "is a text, give a number"),
            (r#"{"inner": {"count": 10}}"#, "inner.count", "is out of range, give a whole number from 2 to 9"),
            (r#"{"inner": {"count": -1}}"#, "inner.count", "is out of range, give a whole number from 2 to 9"),
            (r#"{"inner": {"count": 99999999999}}"#, "inner.count", "is out of range, give a whole number from 2 to 9"),
            (r#"{"inner": {"count": 1e19}}"#, "inner.count", "is out of range, give a whole number from 2 to 9"),
            (
                r#"{"inner": {"count": 18446744073709551615}}"#,
                "inner.count",
                "is out of range, give a whole number from",
            ),
            (r#"{"inner": {"count": "3"}}"#, "inner.count", "is a text, give a number"),
            (r#"{"inner": {"on": "yes"}}"#, "inner.on", "is a text, give true or false"),
            (r#"{"inner": {"header": "Content-Length"}}"#, "inner.header", "is a header that the proxy itself"),
            (r#"{"inner": {"count": 2.5}}"#, "inner.count", "is a number with a fraction, give a whole number"),
            (r#"{"inner": {"wait": "5 secrets"}}"#, "inner.wait", "is out of range, give a duration such as \"250ms\""),
            (r#"{"inner": {"wait": 5}}"#, "inner.wait", "is a whole number, give a duration such as"),
            (r#"{"inner": {"wait": "99999999999999999999h"}}"#, "inner.wait", "is out of range, give a duration"),
            (r#"{"inner": {"header": ":path"}}"#, "inner.header", "is no header name, give 1 to 64"),
            (r#"{"more": [{}, {"share": 0.5, "shape": 1}]}"#, "more[1].shape", "is no field, give one of on, share,"),
            (r#"{"inner": {}, "inner": {}}"#, "inner", "stands there twice, take one out"),
            (r#"{"inner": [0.5]}"#, "inner", "is a list, give an object"),
            (r#"{"inner": null}"#, "inner", "is null, give an object"),
            (r#"[1]"#, "", "is a list, give an object"),
            (r#"{"name": "x""#, "", "is not JSON (EOF while parsing an object at line 1 column 12), give an object"),
            (r#"{} {}"#, "", "is not JSON (trailing characters"),
            (r#"name: x"#, "", "is not JSON (expected"),
            ("\u{fe}", "", "is not JSON"),
        ] {
            let refusal = parse::<Outer>(text.as_bytes()).expect_err(text);
            assert_eq!(refusal.path, path, "{text}: {refusal}");
            assert!(refusal.problem.starts_with(problem), "{text}: {refusal}");
            assert!(!refusal.problem.contains("secret"), "{refusal}");
        }
    }

    #[test]
    fn nothing_is_an_empty_configuration() {
        for text in ["", " \n", "{}"] {
            assert_eq!(parse::<Outer>(text.as_bytes()).unwrap().name, "none");
        }
    }

    #[test]
    fn a_struct_is_read_as_the_same_json() {
        let field = |key: &str, value: &[u8]| {
            let entry = [&[0x0a, key.len() as u8], key.as_bytes(), &[0x12, value.len() as u8], value].concat();
            [&[0x0a, entry.len() as u8], &entry[..]].concat()
        };
        let number = |number: f64| [&[0x11][..], &number.to_le_bytes()].concat();
        let text = |text: &str| [&[0x1a, text.len() as u8], text.as_bytes()].concat();
        let wrap = |tag: u8, inner: &[u8]| [&[tag, inner.len() as u8], inner].concat();
        let inner = wrap(0x2a, &[field("share", &number(0.5)), field("count", &number(3.0))].concat());
        let up = text("up");
        let list = wrap(0x32, &wrap(0x0a, &up));
        let message = [field("name", &text("x")), field("inner", &inner), field("list", &list)].concat();
        let outer: Outer = parse(&message).unwrap();
        assert_eq!((outer.name.as_str(), outer.list.len()), ("x", 1));
        assert_eq!((outer.inner.share.unwrap().get(), outer.inner.count.unwrap().get()), (0.5, 3));
        let wrong = [field("inner", &wrap(0x2a, &field("count", &number(2.5))))].concat();
        let refusal = parse::<Outer>(&wrong).unwrap_err();
        assert_eq!(refusal.to_string(), "at `inner.count`: is a number with a fraction, give a whole number");
        // Other messages: a Duration of 5 s, a BoolValue, a StringValue.
        for other in [&b"\x08\x05"[..], b"\x08\x01", b"\x0a\x01x"] {
            assert!(parse::<Outer>(other).is_err(), "{other:?}");
        }
        let twice = [field("name", &text("x")), field("name", &text("y"))].concat();
        let refusal = parse::<Outer>(&twice).unwrap_err();
        assert_eq!(refusal.to_string(), "at `name`: stands there twice, take one out");
        // Cut short, or with bytes changed, it is refused or read as something else, and never more.
        for end in 0..message.len() {
            let _ = parse::<Outer>(&message[..end]);
            let mut changed = message.clone();
            changed[end] ^= 0xff;
            let _ = parse::<Outer>(&changed);
        }
        // A list in a list in a list …: deeper than anybody means.
        let varint = |mut n: usize| {
            let mut out = vec![];
            while n > 127 {
                out.push(n as u8 | 0x80);
                n >>= 7;
            }
            out.push(n as u8);
            out
        };
        let deep = (0..2_000).fold(number(1.0), |inner, _| {
            let list = [vec![0x0a], varint(inner.len()), inner].concat();
            [vec![0x32], varint(list.len()), list].concat()
        });
        let entry = [vec![0x0a, 4], b"list".to_vec(), vec![0x12], varint(deep.len()), deep].concat();
        assert!(parse::<Outer>(&[vec![0x0a], varint(entry.len()), entry].concat()).is_err());
    }

    #[test]
    fn a_number_without_a_fraction_is_whole() {
        assert_eq!(parse::<Inner>(br#"{"count": 3.0}"#).unwrap().count.unwrap().get(), 3);
        assert_eq!(parse::<Inner>(br#"{"count": 0.3e1, "share": 1}"#).unwrap().count.unwrap().get(), 3);
    }

    #[test]
    fn durations_and_names_are_read() {
        let inner: Inner = parse(br#"{"wait": "5m", "header": "X-Trace-Id"}"#).unwrap();
        assert_eq!(inner.wait, Some(Duration::from_ms(300_000)));
        assert_eq!(inner.header.unwrap().as_str(), "x-trace-id");
    }
}
