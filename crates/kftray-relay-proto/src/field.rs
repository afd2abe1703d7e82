//! Fields: the one building block of all messages, so that a message can grow without a new version.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};

use crate::WireError;

/// Longest message body, bytes. A host name has at most 253, a message [`MAX_TEXT`]; the rest is room to grow.
pub(crate) const MAX_BODY: usize = 8 * 1024;

/// Longest text other than a host name, bytes; longer ones are cut when written.
pub(crate) const MAX_TEXT: usize = 1024;

/// A receiver that does not know a tag with this bit must refuse the message.
const MUST_BE_KNOWN: u8 = 0x80;

/// Writes one message's fields behind a length that is filled in at the end.
pub(crate) struct Writer<'a> {
    out: &'a mut BytesMut,
    length_at: usize,
}

impl<'a> Writer<'a> {
    /// Begins a body at the end of `out`.
    pub(crate) fn new(out: &'a mut BytesMut) -> Self {
        let length_at = out.len();
        out.put_u16(0);
        Self { out, length_at }
    }

    /// Appends one field. `value` must not be longer than [`MAX_TEXT`]; what is beyond is cut.
    pub(crate) fn bytes(self, tag: u8, value: &[u8]) -> Self {
        let value = value.get(..MAX_TEXT).unwrap_or(value);
        self.out.put_u8(tag);
        self.out.put_u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        self.out.put_slice(value);
        self
    }

    /// Appends a text, cut at a character's border.
    pub(crate) fn text(self, tag: u8, value: &str) -> Self {
        let mut end = value.len().min(MAX_TEXT);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(tag, value.get(..end).unwrap_or_default().as_bytes())
    }

    /// Appends a text unless it is empty.
    pub(crate) fn text_if_any(self, tag: u8, value: &str) -> Self {
        if value.is_empty() { self } else { self.text(tag, value) }
    }

    /// Writes the body's length.
    pub(crate) fn finish(self) {
        let begin = self.length_at + 2;
        let length = u16::try_from(self.out.len() - begin).unwrap_or(u16::MAX);
        if let Some(place) = self.out.get_mut(self.length_at..begin) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// Takes a body (length and fields) from `input` behind `skip` bytes; `None` until it is all there.
///
/// Consumes nothing before everything is there.
pub(crate) fn take_body(
    input: &mut BytesMut,
    skip: usize,
    what: &'static str,
) -> Result<Option<(BytesMut, BytesMut)>, WireError> {
    let Some(&[high, low]) = input.get(skip..skip + 2) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_BODY {
        return Err(WireError::TooLong { what, length, limit: MAX_BODY });
    }
    if input.len() < skip + 2 + length {
        return Ok(None);
    }
    let head = input.split_to(skip + 2);
    Ok(Some((head, input.split_to(length))))
}

/// The fields of one message.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    /// By tag; of a field that repeats, all values in order.
    values: BTreeMap<u8, Vec<&'a [u8]>>,
}

impl<'a> Fields<'a> {
    /// Takes a body apart. `known` are the tags this receiver understands.
    pub(crate) fn parse(mut body: &'a [u8], known: &[u8]) -> Result<Self, WireError> {
        let mut values: BTreeMap<u8, Vec<&'a [u8]>> = BTreeMap::new();
        while let Some((&tag, rest)) = body.split_first() {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or(WireError::Field { tag })?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (value, rest) = rest.split_at_checked(length).ok_or(WireError::Field { tag })?;
            if known.contains(&tag) {
                values.entry(tag).or_default().push(value);
            } else if tag & MUST_BE_KNOWN != 0 {
                return Err(WireError::Unsupported { what: "field", code: tag });
            }
            body = rest;
        }
        Ok(Self { values })
    }

    /// The last value of a field.
    pub(crate) fn bytes(&self, tag: u8) -> Option<&'a [u8]> {
        self.values.get(&tag)?.last().copied()
    }

    /// All values of a field that may repeat, as texts.
    pub(crate) fn texts(&self, tag: u8) -> Result<Vec<String>, WireError> {
        let values = self.values.get(&tag).map_or(&[][..], Vec::as_slice);
        values.iter().map(|value| text(tag, value)).collect()
    }

    /// A text; an error if it is not UTF-8.
    pub(crate) fn text(&self, tag: u8) -> Result<Option<String>, WireError> {
        self.bytes(tag).map(|value| text(tag, value)).transpose()
    }

    /// A value of exactly `N` bytes.
    pub(crate) fn array<const N: usize>(&self, tag: u8) -> Result<Option<[u8; N]>, WireError> {
        let exact = |value: &[u8]| value.try_into().map_err(|_| WireError::Field { tag });
        self.bytes(tag).map(exact).transpose()
    }

    /// One byte.
    pub(crate) fn byte(&self, tag: u8) -> Result<Option<u8>, WireError> {
        Ok(self.array::<1>(tag)?.map(|[byte]| byte))
    }

    /// A number of 16 bits.
    pub(crate) fn u16(&self, tag: u8) -> Result<Option<u16>, WireError> {
        Ok(self.array(tag)?.map(u16::from_be_bytes))
    }

    /// A number of 32 bits.
    pub(crate) fn u32(&self, tag: u8) -> Result<Option<u32>, WireError> {
        Ok(self.array(tag)?.map(u32::from_be_bytes))
    }

    /// A number of 64 bits.
    pub(crate) fn u64(&self, tag: u8) -> Result<Option<u64>, WireError> {
        Ok(self.array(tag)?.map(u64::from_be_bytes))
    }
}

fn text(tag: u8, value: &[u8]) -> Result<String, WireError> {
    str::from_utf8(value).map(str::to_owned).map_err(|_| WireError::Field { tag })
}

/// The field, or the error that it is missing.
pub(crate) fn required<T>(value: Option<T>, tag: u8) -> Result<T, WireError> {
    value.ok_or(WireError::Missing { tag })
}
